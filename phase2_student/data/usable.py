"""Which samples a student can learn from: one rule for every source of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError


@dataclass(frozen=True, kw_only=True)
class Usable:
    """The samples of a split that can be learned from."""

    samples: list[tuple[str, Sample]]
    """By their keys, in the order of the file."""
    lengths: list[int]
    """Tokens of each."""
    skipped: list[str]
    """Why each of the others is left out."""


def usable(
    rows: Sequence[tuple[str, Sample]],
    judge: Callable[[str, Sample], int],
    *,
    skip: bool,
    progress: bool = False,
    label: str = "checking targets",
    note: str = "",
) -> Usable:
    """Judge every sample.

    Args:
        rows: samples by their keys.
        judge: tokens of a sample; raises what is wrong with it.
        skip: leave such samples out, and say why (`cache.on_error`); else it is raised.
        progress: show a bar.
        label: of the bar.
        note: behind each reason.

    Raises:
        DataError, AlignmentError: of one sample, unless they are skipped.
        DataError: none is left.
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
        raise DataError(f"{of}: no sample of {len(rows):,} can be learned from; the first: {found.skipped[0]}")
    return found
