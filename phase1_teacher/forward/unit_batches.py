"""From planned units to encoded batches: the work of the prefetch thread, which does not touch the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool

from firstsight.data.samples import Sample
from firstsight.errors import DataError
from firstsight.families.base import Pictures
from firstsight.prompting import Encoded
from phase1_teacher.planning.batches import batch_by_tokens
from phase1_teacher.planning.job import DumpJob, check_sample
from storage.plan import PlannedUnit


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample of a batch."""

    key: str
    sample: Sample
    encoded: Encoded
    """The sample with its answer; only the prompt if the teacher is to answer."""
    images: tuple[str, ...]
    """`Sample.image_marks`: images of equal marks share one vision pass."""

    @property
    def name(self) -> str:
        """Place and id, for messages."""
        return f"{self.sample.place}: sample {self.sample.id!r}"


@dataclass(frozen=True, kw_only=True)
class UnitBatch:
    """One forward pass's worth of a unit."""

    unit: PlannedUnit
    first: bool
    last: bool
    samples: list[EncodedSample]
    skipped: dict[str, str] = field(default_factory=dict)
    """Samples that could not be encoded, with the reason."""
    refused: dict[str, str] = field(default_factory=dict)
    """Samples that failed in the forward pass, with the reason; the forward pass fills this."""
    later_images: frozenset[str] = frozenset()
    """Digests of the images that later batches of the unit need."""


def unit_batches(job: DumpJob, units: Iterable[PlannedUnit], *, is_done: Callable[[str], bool]) -> Iterator[UnitBatch]:
    """The batches of every unit that is not committed when its turn comes.

    Raises:
        DataError: a sample cannot be encoded, and the recipe does not say `on_error: skip`.
    """
    # the pool's threads are daemons: a dump that is told to stop does not wait for them
    with ThreadPool(picture_threads()) as pool:
        for unit in units:
            if not is_done(unit.name):
                yield from _batches(job, unit, pool)


def picture_threads() -> int:
    """Threads that open and prepare images: half of the cores of this process, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(1, min(8, cores // 2))


def _batches(job: DumpJob, unit: PlannedUnit, pool: ThreadPool) -> Iterator[UnitBatch]:
    skip = job.recipe.cache.on_error == "skip"
    skipped: dict[str, str] = {}
    samples: dict[str, Sample] = {}
    digests: dict[str, tuple[str, ...]] = {}
    lengths: list[int] = []
    for key in unit.keys:
        try:
            if key not in job.samples:
                raise DataError(
                    f"unit {unit.name}: planned sample {key} was not found in the data; put it back, set "
                    "cache.on_error: skip, or use another cache.path"
                )
            sample = job.samples[key]
            if skip:  # without it everything was checked before the dump began
                check_sample(job.recipe, job.pair, sample)
            digests[key] = sample.image_marks
            lengths.append(_length(job, sample))
            samples[key] = sample
        except DataError as error:
            if not skip:
                raise
            skipped[key] = job.recipe.without_roots(str(error))
    keys = list(samples)
    batches = batch_by_tokens(lengths, job.recipe.teacher.batch_tokens)
    images = [{digest for index in batch for digest in digests[keys[index]]} for batch in batches]
    for number, batch in enumerate(batches):
        chosen = [(keys[index], samples[keys[index]], digests[keys[index]]) for index in batch]
        encoded = _encode(job, chosen, pool, skip, skipped)
        yield UnitBatch(
            unit=unit,
            first=number == 0,
            last=number == len(batches) - 1,
            samples=encoded,
            skipped=skipped,
            later_images=frozenset().union(*images[number + 1 :]),
        )
        skipped = {}
    if not batches:
        yield UnitBatch(unit=unit, first=True, last=True, samples=[], skipped=skipped)


def _encode(
    job: DumpJob,
    batch: Sequence[tuple[str, Sample, tuple[str, ...]]],
    pool: ThreadPool,
    skip: bool,
    skipped: dict[str, str],
) -> list[EncodedSample]:
    """Samples as model inputs; an image that several samples of the batch share is opened and prepared once."""
    teacher = job.pair.teacher

    def make(sample: Sample) -> Pictures | ValueError:
        try:
            return teacher.pictures(sample.open_images(), sample.image_limits)
        except ValueError as error:  # a DataError, or an error of the processor
            return error

    made: dict[tuple[str, ...], AsyncResult[Pictures | ValueError]] = {}
    for _, sample, digests in batch:
        if digests and digests not in made:
            made[digests] = pool.apply_async(make, (sample,))
    encoded = []
    for key, sample, digests in batch:
        found = made[digests].get() if digests else None
        try:  # if an image could not be prepared, encoding the sample raises the reason
            inputs = teacher.encode(sample, pictures=None if isinstance(found, ValueError) else found)
        except DataError as error:
            if not skip:
                raise
            skipped[key] = job.recipe.without_roots(str(error))
            continue
        encoded.append(EncodedSample(key=key, sample=sample, encoded=inputs, images=digests))
    return encoded


def _length(job: DumpJob, sample: Sample) -> int:
    missing = job.recipe.cache.generate_max_tokens if sample.answer is None else 0
    return job.pair.teacher.sample_tokens(sample) + missing
