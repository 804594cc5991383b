"""Which samples a student can learn from: one rule for every source of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError


@dataclass(frozen=True, kw_only=True)
class Usable:
    """The usable samples of a split."""

    samples: list[tuple[str, Sample]]
    """Keys and samples, in the order of the file."""
    lengths: list[int]
    """Number of tokens of each sample."""
    skipped: list[str]
    """The reason for each sample that is left out."""


def usable(
    rows: Sequence[tuple[str, Sample]],
    judge: Callable[[str, Sample], int],
    *,
    skip: bool,
    progress: bool = False,
    label: str = "checking targets",
    note: str = "",
) -> Usable:
    """Check every sample.

    Args:
        rows: keys and samples.
        judge: returns the number of tokens of a sample; raises an error if the sample cannot be used.
        skip: leave such samples out with the reason (`cache.on_error`); else the error is raised.
        progress: show a bar.
        label: label of the bar.
        note: added to each reason.

    Raises:
        DataError, AlignmentError: a sample cannot be used, and `skip` is not set.
        DataError: no sample is left.
    """
    found = Usable(samples=[], lengths=[], skipped=[])
    for key, sample in tqdm(rows, desc=label, unit=" sample", disable=not progress, leave=False):
        try:
            length = judge(key, sample)
        except (AlignmentError, DataError) as error:
            if not skip:
                raise
            found.skipped.append(f"{error}{note}")
            continue
        found.samples.append((key, sample))
        found.lengths.append(length)
    if rows and not found.samples:  # a mean over nothing would be the best loss of any run
        of = rows[0][1].place.rpartition(":")[0]
        raise DataError(f"{of}: none of the {len(rows):,} samples can be used; the first: {found.skipped[0]}")
    return found
