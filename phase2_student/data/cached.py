"""Targets from a cache: samples joined with what is stored of them, by key; never by row number.

source = CacheSource(open_cache("cache.zarr"), prompter, temperature=2.0)
data = source.dataset(samples)          # refuses what does not fit, by name
loader = DataLoader(data, collate_fn=source.collator())
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError
from firstsight.models.tail_shape import TailShape
from firstsight.prompting import Encoded, Prompter
from firstsight.recipe import Recipe
from phase2_student.data.batch import Batch, Collator, Item
from phase2_student.data.contract import check_tail
from phase2_student.data.usable import usable
from phase2_student.loss.targets import CoordinateTargets, ShapedTargets, StoredTargets
from storage.exact import ExactCache, open_any_cache
from storage.reader import Cache, CommittedCache
from storage.targets import SampleTargets, Targets, Turn
from storage.targets import ShapedTargets as CachedShape
from storage.temperature import at_temperature
from storage.wording import counted


def open_recipe_cache(recipe: Recipe) -> Cache | ExactCache:
    """The recipe's cache, of the kind that lies there, with the memory and the scratch directory that it states; CacheError."""
    return open_any_cache(recipe.cache_location, memory_budget=recipe.cache.memory, scratch=recipe.cache_scratch)


class CacheSource:
    """A `source.TargetSource`: what a dump has left.

    Args:
        cache: opened.
        prompter: the student's.
        temperature: of the targets, within the cache's nodes.
        tail: of the recipe's loss; None: the shape of the tail where the cache has one.
        skip: leave out samples that do not fit this student (`cache.on_error`).
        progress: show a bar while targets are compared.
    """

    note = ""

    def __init__(
        self,
        cache: Cache,
        prompter: Prompter,
        *,
        temperature: float,
        tail: str | None = None,
        skip: bool = False,
        progress: bool = False,
    ) -> None:
        self.cache = cache
        self.prompter = prompter
        self.temperature = temperature
        self.skip = skip
        self.progress = progress
        self.entries: int | None = cache.spec["top_k"]
        self.tail_rank = cache.tail_rank if tail in (None, "shape") else 0

    def at(self, recipe: Recipe) -> CacheSource:
        """The same cache for a recipe with another loss. RecipeError: one that asks for a shape which the cache has not."""
        check_tail(recipe, self.cache)
        return CacheSource(
            self.cache,
            self.prompter,
            temperature=recipe.loss.temperature,
            tail=recipe.loss.tail,
            skip=self.skip,
            progress=self.progress,
        )

    def shared_mask(self) -> NDArray[np.bool_]:
        """Rows of the student's head that the teacher's vocabulary has, too: bool [V]."""
        return self.cache.shared_mask()

    def dataset(self, samples: Sequence[Sample]) -> CachedDataset:
        """Samples with their targets; raises what `CachedDataset` does."""
        return CachedDataset(
            samples, self.prompter, self.cache, temperature=self.temperature, skip=self.skip, progress=self.progress
        )

    def reused(self, dataset: CachedDataset) -> CachedDataset:
        """A dataset of this cache at this temperature, checked already; TemperatureOutOfRange."""
        return dataset.at(self.temperature)

    def collator(self, blank: Encoded | None = None) -> Collator[StoredTargets, StoredTargets]:
        """Items of the dataset to batches."""
        return Collator(join=join_stored, pad_id=self.prompter.pad_id, blank=blank)

    def identity(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a run on these samples is bound to; the cache may grow."""
        shape = {"tail": f"shape of rank {self.tail_rank}"} if self.tail_rank else {}
        return {"targets": "cache", "targets digest": self.cache.digest_of_samples(keys), **shape}

    def facts(self) -> dict[str, Any]:
        """What `run.json` tells of the targets."""
        return {"teacher": None, "cache": self.cache.location, "cache_digest": self.cache.digest}

    def completion(self, device: torch.device) -> Callable[[Batch[StoredTargets]], Batch[Any]]:
        """What brings a batch to the device, ready for the loss; reads the image of the tail's directions where they are used."""
        if not self.tail_rank:
            return lambda batch: batch.to(device)
        shape, temperature = TailShape.of_cache(self.cache.head(), self.shared_mask(), device), self.temperature

        def complete(batch: Batch[StoredTargets]) -> Batch[ShapedTargets]:
            seen = batch.to(device)
            assert isinstance(seen.targets, CoordinateTargets)
            return seen.with_targets(ShapedTargets.of(seen.targets, shape, temperature))

        return complete


def join_stored(items: Sequence[Item[StoredTargets]]) -> StoredTargets:
    """The targets of a batch."""
    parts = [item.targets for item in items]
    return type(parts[0]).joined(parts)


NOT_BY_THE_DUMP = " (not skipped by the dump, but for this student: cache.on_error)"
"""Behind the reason of a sample that the dump took."""


def samples_with_targets(
    samples: Sequence[Sample], cache: CommittedCache[Any]
) -> tuple[list[tuple[str, Sample]], list[str]]:
    """Samples by their keys, without those that the dump skipped; and why it skipped each of these.

    Raises:
        DataError: samples that the cache does not hold: how many, which, and what to run; none that the dump did not skip.
    """
    rows = [(sample.key, sample) for sample in samples]
    skipped = cache.skipped()
    missing = [sample for key, sample in rows if key not in cache and key not in skipped]
    if missing:
        names = ", ".join(sample.place for sample in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing):,} of {counted(len(rows), 'sample')} {'has' if len(missing) == 1 else 'have'} no targets in "
            f"{cache.location} ({names}): new or edited since the dump; run fs-teacher dump with this recipe"
        )
    found = [(key, sample) for key, sample in rows if key in cache]
    if rows and not found:  # a mean over nothing would be the best loss of any run
        key, sample = rows[0]
        raise DataError(
            f"the dump skipped {'the only sample' if len(rows) == 1 else f'all {len(rows):,} samples'} of "
            f"{sample.place.rpartition(':')[0]} ({skipped[key]}); repair the data and dump again"
        )
    return found, [skipped[key] for key, _ in rows if key not in cache]


class CachedDataset(Dataset[Item[StoredTargets]]):
    """Samples with their targets.

    Args:
        samples: of one split, rows of equal content included; those that the dump skipped are left out and counted in `skipped`.
        prompter: the student's.
        cache: opened.
        temperature: within the cache's nodes.
        skip: leave out, and name, samples of which the cache holds other tokens, or that are too long; else they are an error.
        progress: show a bar while the targets are compared.

    Raises:
        DataError: samples that the cache does not hold: how many, which, and what to run; none that can be learned from; one that
            is too long.
        AlignmentError: target ids that differ from the student's own tokens of the answer, with the position.
        TemperatureOutOfRange: the cache has no tail mass for this temperature.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        prompter: Prompter,
        cache: Cache,
        *,
        temperature: float,
        skip: bool = False,
        progress: bool = False,
    ) -> None:
        self.prompter = prompter
        self.cache = cache
        self.temperature = temperature
        # what stands in a hard-only row, whose stored ids are all zero: the loss takes distinct shared ids
        self._any_ids = cache.shared_mask().nonzero()[0][: cache.top_k].astype(np.int64)

        def judge(key: str, sample: Sample) -> int:
            targets = cache[key]
            self._check(sample, targets)
            length = prompter.prompt_tokens(sample)[0] + len(targets.targets)
            prompter.check_length(sample, length)
            return length

        rows, skipped = samples_with_targets(samples, cache)
        known = usable(rows, judge, skip=skip, progress=progress, note=NOT_BY_THE_DUMP)
        self.samples = known.samples
        self.skipped: Sequence[str] = [*skipped, *known.skipped]
        self._lengths = known.lengths
        if self.samples:  # is the temperature within the nodes?
            self._at_temperature(cache[self.samples[0][0]].targets)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item[StoredTargets]:
        """The sample; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""
        key, sample = self.samples[index if index >= 0 else ~index]
        cached = self.cache[key]
        turns = cached.all_turns() if index >= 0 else ()
        targets = cached.targets if index >= 0 else cached.targets.rows(slice(0))
        log_p, log_r = self._at_temperature(targets)
        ids = np.where(targets.soft[:, None], targets.ids.astype(np.int64), self._any_ids)
        encoded = self.prompter.encode(sample, _by_turn(targets.target_ids, turns))
        arrays = {
            "target_ids_N": encoded.target_ids,
            "soft_N": torch.from_numpy(targets.soft),
            "hard_N": torch.tensor([turn.hard for turn in turns for _ in range(turn.positions)], dtype=torch.bool),
            "ids_NK": torch.from_numpy(ids),
            "log_p_NK": torch.from_numpy(log_p),
            "log_r_N": torch.from_numpy(log_r),
        }
        stored = (
            CoordinateTargets(**arrays, coefficients_Nr=torch.from_numpy(targets.tail_coefficients))
            if isinstance(targets, CachedShape)
            else StoredTargets(**arrays)
        )
        return Item(name=sample.id, encoded=encoded, targets=stored)

    def at(self, temperature: float) -> CachedDataset:
        """The same samples, checked already, at another temperature of the cache.

        Raises:
            TemperatureOutOfRange: the cache has no tail mass for it.
        """
        other = copy.copy(self)
        other.temperature = temperature
        if other.samples:
            other._at_temperature(other.cache[other.samples[0][0]].targets)
        return other

    def lengths(self) -> list[int]:
        """Tokens of every sample, prompt, images and answer; no image is decoded."""
        return self._lengths

    def _at_temperature(self, targets: Targets) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        log_p, log_r = at_temperature(targets.logprobs, targets.tail, self.cache.temperatures, self.temperature)
        hard_only = ~targets.soft
        log_p[hard_only], log_r[hard_only] = 0.0, -np.inf  # any finite row: its weight is zero
        return log_p, log_r

    def _check(self, sample: Sample, cached: SampleTargets) -> None:
        turns = cached.all_turns()
        if len(turns) != self.prompter.turn_count(sample):
            raise AlignmentError(
                f"{sample.place}: sample {sample.id!r}: it has {counted(self.prompter.turn_count(sample), 'answer')}, the cache holds "
                f"{len(turns)}; the cache was made with another data.turns: dump again"
            )
        stored = _by_turn(cached.targets.target_ids, turns)
        start = 0
        # an answer that the teacher gave may stand in for a ground truth that came later
        for turn, own, kept in zip(turns, self.prompter.turn_ids(sample), stored, strict=False):
            if turn.hard and own != kept:
                at = next(
                    (i for i, (a, b) in enumerate(zip(own, kept, strict=False)) if a != b), min(len(own), len(kept))
                )
                expected, got = own[at : at + 1], kept[at : at + 1]
                raise AlignmentError(
                    f"{sample.place}: sample {sample.id!r}: answer position {start + at}: the student's token is {expected}, the "
                    f"cache holds {got}; the cache was made for another tokenizer: dump again for this student"
                )
            start += turn.positions


def _by_turn(ids: NDArray[np.uint32], turns: Sequence[Turn]) -> list[list[int]]:
    """Target ids of each answer."""
    ends = np.cumsum([turn.positions for turn in turns])
    return [part.tolist() for part in np.split(ids, ends[:-1])] if turns else []
