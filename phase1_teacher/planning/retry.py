"""Plan samples again that earlier dumps skipped: those that can be judged without weights and can be dumped now.

A skip is the decision of one run: since then an image may have been repaired, or `data.max_length` raised.
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
"""A unit's note with the keys that were skipped because of what the teacher computed, such as logits that are not finite."""


def plan_again(
    writer: CacheWriter,
    samples: SampleIndex,
    judge: Callable[[Sample], object],
    *,
    unit_positions: int,
    all_skipped: bool,
    stop: bool,
) -> int:
    """Plan skipped samples again; returns how many were planned.

    Args:
        writer: the cache's writer; all samples are planned.
        samples: the recipe's samples.
        judge: raises DataError or AlignmentError for a sample that cannot be dumped, as far as this can be known without weights.
        unit_positions: as in `CacheWriter.plan`.
        all_skipped: also plan samples that only the teacher can judge.
        stop: raise the error of a sample that still cannot be dumped; else it stays skipped.

    Raises:
        DataError, AlignmentError: with `stop`, a sample still cannot be dumped.
        UnsupportedFormat: with `all_skipped`, the format of the cache plans each sample only once.
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
