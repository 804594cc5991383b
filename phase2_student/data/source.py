"""Where a run's targets come from, behind one interface: a cache of either kind, or the teacher in memory.

    source = open_source(recipe, directory, online=False)    # refuses a cache of another teacher or student
    data, collate = source.dataset(samples), source.collator()
    complete = source.completion(device)
    batch = complete(collate([data[0], data[1]]))            # ready for the student's forward

A new kind of targets is one module with a source, and a line in `open_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from firstsight.data.samples import Sample
from firstsight.identity import cached_turns
from firstsight.models.loading import head_rows, load_config
from firstsight.pair import load_pair, load_prompter
from firstsight.prompting import Encoded, Prompter
from firstsight.recipe import Recipe
from phase2_student.data.batch import Batch, Collator
from phase2_student.data.cached import CacheSource, open_recipe_cache
from phase2_student.data.contract import check_cache, check_loss
from phase2_student.data.exact import ExactSource
from phase2_student.data.online import TeacherSource
from storage.exact import ExactCache
from storage.reader import Cache


class SampleDataset(Protocol):
    """Samples of one split, rows of equal content included, with what gives them targets."""

    samples: list[tuple[str, Sample]]
    """By their keys, in the order of the file."""
    skipped: Sequence[str]
    """Why each sample has no targets that is left out for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """An `Item`; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""

    def lengths(self) -> list[int]:
        """Tokens of every sample, prompt, images and answer; no image is decoded."""


class TargetSource(Protocol):
    """What a training needs to know of its targets."""

    prompter: Prompter
    """The student's."""
    note: str
    """For the terminal; empty for the usual source."""
    entries: int | None
    """Stored per position, beside the mass of the rest; None: whole distributions."""
    tail_rank: int
    """Rank of the tail's shape where that is trained on; 0: none."""

    def at(self, recipe: Recipe) -> TargetSource:
        """The same targets for a recipe that differs in its loss, training or weights."""

    def shared_mask(self) -> NDArray[np.bool_]:
        """Rows of the student's head that the teacher's vocabulary has, too: bool [V]."""

    def dataset(self, samples: Sequence[Sample]) -> SampleDataset:
        """Samples with what gives them targets.

        Raises:
            FirstSightError, CacheError: samples that have none, by name.
        """

    def reused(self, dataset: Any) -> SampleDataset:
        """A dataset of `dataset` of this source at another temperature, for this one's."""

    def collator(self, blank: Encoded | None = None) -> Collator[Any, Any]:
        """Items of a dataset to batches.

        Args:
            blank: of `Prompter.blank`, for several processes.
        """

    def identity(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a run is bound to that trains and validates on the targets of some samples.

        Args:
            keys: of the samples.
        """

    def facts(self) -> dict[str, Any]:
        """What `run.json` tells of the targets."""

    def completion(self, device: torch.device) -> Callable[[Any], Batch[Any]]:
        """What brings a batch of the collator to the device, ready for the loss; loads what that takes."""


def open_source(recipe: Recipe, directory: Path, *, online: bool, progress: bool = False) -> TargetSource:
    """The source that a recipe asks for.

    Args:
        recipe: of the run.
        directory: of the student.
        online: the teacher in memory, and no cache.
        progress: show bars.

    Raises:
        FirstSightError: a model that is not there or does not fit.
        CacheError: no cache, or one of another teacher or student.
    """
    if online:
        check_loss(recipe, "the teacher in memory gives")
        return TeacherSource(recipe, load_pair(recipe), progress=progress)
    cache = open_recipe_cache(recipe)
    prompter = load_prompter(directory, recipe.student, recipe.data, turns=cached_turns(cache.spec))
    return source_of(recipe, cache, prompter, head_rows(load_config(directory, recipe.student)), progress=progress)


def source_of(
    recipe: Recipe, cache: Cache | ExactCache, prompter: Prompter, rows: int, *, progress: bool = False
) -> TargetSource:
    """The source of a cache of either kind, compared with the recipe and the student.

    Args:
        recipe: of the run.
        cache: opened.
        prompter: the student's.
        rows: of the student's head.
        progress: show bars.

    Raises:
        FirstSightError: a recipe or a vocabulary that does not go with the cache.
        CacheError: the cache of another teacher or student.
    """
    check_cache(recipe, cache, prompter, rows)
    return source_at(
        cache,
        prompter,
        rows,
        temperature=recipe.loss.temperature,
        tail=recipe.loss.tail,
        skip=recipe.cache.on_error == "skip",
        progress=progress,
    )


def source_at(
    cache: Cache | ExactCache,
    prompter: Prompter,
    rows: int,
    *,
    temperature: float,
    tail: str | None = None,
    skip: bool = False,
    progress: bool = False,
) -> TargetSource:
    """The source of a cache of either kind, compared with nothing.

    Args:
        cache: opened.
        prompter: the student's.
        rows: of the student's head.
        temperature: of the targets.
        tail: of a recipe's loss, for a top_k cache.
        skip: leave out samples that do not fit the student.
        progress: show bars.

    Raises:
        AlignmentError: the teacher of an exact cache and the student share no token.
        CacheError: the token table of an exact cache cannot be read.
    """
    if isinstance(cache, ExactCache):
        return ExactSource(cache, prompter, rows=rows, temperature=temperature, skip=skip, progress=progress)
    return CacheSource(cache, prompter, temperature=temperature, tail=tail, skip=skip, progress=progress)
