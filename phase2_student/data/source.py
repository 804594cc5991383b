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
    """Samples of one split with their targets, rows of equal content included."""

    samples: list[tuple[str, Sample]]
    """Keys and samples, in the order of the file."""
    skipped: Sequence[str]
    """The reason for each sample that is left out because it has no targets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """An `Item`; for a negative index the filler `~index`: its prompt without an answer, which has no weight in a batch."""

    def lengths(self) -> list[int]:
        """Number of tokens of every sample, with prompt, images and answer; decodes no image."""


class TargetSource(Protocol):
    """What training needs to know about its targets."""

    prompter: Prompter
    """The student's prompter."""
    note: str
    """A note for the terminal; empty for the usual source."""
    entries: int | None
    """Stored entries per position, besides the mass of the rest; None: whole distributions."""
    tail_rank: int
    """Rank of the tail's shape in training; 0: no shape."""

    def at(self, recipe: Recipe) -> TargetSource:
        """The same targets for a recipe that differs in its loss, training or weights."""

    def shared_mask(self) -> NDArray[np.bool_]:
        """Bool [V]: rows of the student's head for tokens that the teacher also has."""

    def dataset(self, samples: Sequence[Sample]) -> SampleDataset:
        """Samples with their targets.

        Raises:
            FirstSightError, CacheError: samples have no targets; names them.
        """

    def reused(self, dataset: Any) -> SampleDataset:
        """A dataset that this source made at another temperature, at the present one."""

    def collator(self, blank: Encoded | None = None) -> Collator[Any, Any]:
        """Joins items of a dataset into batches.

        Args:
            blank: from `Prompter.blank`, for several processes.
        """

    def identity(self, keys: Sequence[str]) -> dict[str, Any]:
        """The identity of the targets of some samples, to which a run is bound.

        Args:
            keys: keys of the samples.
        """

    def facts(self) -> dict[str, Any]:
        """What `run.json` records about the targets."""

    def completion(self, device: torch.device) -> Callable[[Any], Batch[Any]]:
        """A function that brings a batch of the collator to the device, ready for the loss; loads what it needs."""


def open_source(recipe: Recipe, directory: Path, *, online: bool, progress: bool = False) -> TargetSource:
    """The source that a recipe asks for.

    Args:
        recipe: the run's recipe.
        directory: the student's directory.
        online: use the teacher in memory instead of a cache.
        progress: show bars.

    Raises:
        FirstSightError: a model was not found or does not fit.
        CacheError: the cache was not found, or is for another teacher or student.
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
        recipe: the run's recipe.
        cache: an open cache.
        prompter: the student's prompter.
        rows: number of rows in the student's head.
        progress: show bars.

    Raises:
        FirstSightError: the recipe or a vocabulary does not fit the cache.
        CacheError: the cache is for another teacher or student.
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
    """The source of a cache of either kind, without comparing it with a recipe.

    Args:
        cache: an open cache.
        prompter: the student's prompter.
        rows: number of rows in the student's head.
        temperature: temperature of the targets.
        tail: `loss.tail` of a recipe, for a top_k cache.
        skip: leave out samples that do not fit the student.
        progress: show bars.

    Raises:
        AlignmentError: the teacher of an exact cache and the student share no token.
        CacheError: the token table of an exact cache cannot be read.
    """
    if isinstance(cache, ExactCache):
        return ExactSource(cache, prompter, rows=rows, temperature=temperature, skip=skip, progress=progress)
    return CacheSource(cache, prompter, temperature=temperature, tail=tail, skip=skip, progress=progress)
