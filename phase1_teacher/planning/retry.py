"""Which samples that earlier dumps skipped are planned again: those that need no weights to judge and can be dumped now.

A skip is a decision of one run: an image may have been repaired since, `data.max_length` raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError
from phase1_teacher.planning.sample_index import SampleIndex
from storage.exact import open_any_cache
from storage.plan import PlannedSample
from storage.writer import CacheWriter

BY_TEACHER = "skipped_by_teacher"
"""Name of a unit's note: the keys that were skipped for what the teacher computed, such as logits that are not finite."""


def plan_again(
    writer: CacheWriter,
    samples: SampleIndex,
    judge: Callable[[Sample], object],
    *,
    unit_positions: int,
    all_skipped: bool,
    stop: bool,
) -> int:
    """Plan skipped samples again; how many were planned.

    Args:
        writer: of the cache; all samples are planned.
        samples: of the recipe.
        judge: raises DataError or AlignmentError for a sample that cannot be dumped, as far as that can be told without weights.
        unit_positions: as `CacheWriter.plan` takes it.
        all_skipped: also those that only the teacher can judge.
        stop: raise what is wrong with a sample that still cannot be dumped; else it stays skipped.

    Raises:
        DataError, AlignmentError: with `stop`.
        UnsupportedFormat: with `all_skipped`, a cache in which samples are planned once.
    """
    if not writer.version.replans_skipped and not all_skipped:
        return 0
    cache = open_any_cache(writer.store)
    skipped = cache.skipped()
    if not skipped:
        return 0
    by_teacher: dict[str, bool] = {}
    for manifest in cache.manifests():  # in the order of units: the last one decides
        judged = manifest.notes.get(BY_TEACHER, ())
        by_teacher |= {key: key in judged for key in manifest.skipped}

    def wanted() -> Iterator[PlannedSample]:
        left = {key for key in skipped if all_skipped or not by_teacher[key]}
        for planned in samples.planned():
            if planned.key not in left:
                continue
            left.remove(planned.key)  # rows of equal content are judged once
            try:
                judge(samples[planned.key])
            except (DataError, AlignmentError):
                if stop:
                    raise
                continue
            yield planned

    return writer.plan(wanted(), unit_positions=unit_positions, retry_skipped=True)
