"""All that is wrong with data, in one pass: no row is left out in silence, and no weights are needed.

report = check_data([DataSource(files=(path,), root=path.parent)])
report.faults, report.summary.rows, report.lost
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from tqdm import tqdm

from firstsight.data.images import image_digest, opened
from firstsight.data.sample import Sample
from firstsight.data.samples import SampleFiles
from firstsight.data.source import DataSource, Turns
from firstsight.data.summary import DataSummary
from firstsight.errors import DataError

MAX_FAULTS = 10_000
"""Faults that are kept as lines; more are counted."""


@dataclass(kw_only=True)
class DataReport:
    """What a check found."""

    summary: DataSummary = field(default_factory=DataSummary)
    faults: list[str] = field(default_factory=list)
    """A line for each row, image or file that cannot be used; the first `MAX_FAULTS`."""
    fault_count: int = 0
    repeated_ids: int = 0
    answer_characters: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Least, most and sum over the answers."""
    animations: int = 0
    """Pictures of several frames: the first one is used."""
    largest_image: tuple[int, int] = (0, 0)
    smallest_image: tuple[int, int] = (0, 0)

    @property
    def lost(self) -> bool:
        """Something would be refused, or left out with `cache.on_error: skip`."""
        return self.fault_count > 0

    def fault(self, error: DataError) -> None:
        """Keep what is wrong with a row."""
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(str(error))

    def as_json(self) -> dict[str, Any]:
        """The report as plain types."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "summary"}
        return {**self.summary.as_json(), **own, "lost": self.lost}


def check_data(
    sources: Sequence[DataSource],
    *,
    judge: Callable[[Sample], object] | None = None,
    turns: Turns = "all",
    images: bool = True,
    progress: bool = False,
) -> DataReport:
    """Read every row and decode every picture once.

    Args:
        sources: the splits, training first.
        judge: raises DataError for a sample that a model does not take; called where the row and its pictures are right.
        turns: which assistant messages are answers.
        images: decode the pictures; else their headers are read.
        progress: show a bar.
    """
    report = DataReport(summary=DataSummary(turns=turns))
    seen: dict[str, DataError | None] = {}
    with tqdm(desc="checking samples", unit=" sample", disable=not progress, leave=False) as bar:
        for source in sources:
            try:
                files = SampleFiles(source)
            except DataError as error:
                report.fault(error)
                continue
            for located in files.located(report.fault):
                bar.update()
                sample = located.sample
                try:
                    report.summary.add(source.part, sample)
                    _check_images(sample, report, seen, decode=images)
                    if turns == "all":
                        sample.check_answers()
                    if judge is not None:
                        judge(sample)
                except DataError as error:
                    report.fault(error)
                for answer in sample.answers if turns == "all" else [a for a in (sample.answer,) if a is not None]:
                    _add_length(report.answer_characters, len(answer))
            report.repeated_ids += files.repeated_ids
    return report


def _check_images(sample: Sample, report: DataReport, seen: dict[str, DataError | None], *, decode: bool) -> None:
    for image in sample.images:
        digest = image_digest(image)
        if digest in seen:
            if seen[digest] is not None:
                raise DataError(f"{sample.place}: image {image} cannot be used: {seen[digest]}")
            continue
        try:
            with opened(image, sample.place) as picture:
                report.animations += getattr(picture, "n_frames", 1) > 1
                size = picture.size
                if decode:
                    picture.load()
        except DataError as error:
            seen[digest] = error
            raise
        seen[digest] = None
        report.largest_image = max(report.largest_image, size, key=_pixels)
        least = report.smallest_image
        report.smallest_image = size if least == (0, 0) else min(least, size, key=_pixels)


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _add_length(lengths: list[int], length: int) -> None:
    least, most, total = lengths
    lengths[:] = [length if total == most == 0 else min(least, length), max(most, length), total + length]


def report_text(report: DataReport, *, most: int = 20) -> str:
    """The report as lines for the terminal; of the faults the first `most`."""
    summary = report.summary
    rows = sum(summary.rows.values())
    answered = rows - summary.unanswered
    by_split = ", ".join(f"{count:,} {split}" for split, count in summary.rows.items())
    lines = [
        f"Rows        {rows:,} ({by_split})" if rows else "Rows        0",
        f"Answers     {answered:,} rows have one, {summary.unanswered:,} do not"
        + (f"; {summary.answers:,} with those before the last" if summary.answers != answered else "")
        + (f"; {_range(report.answer_characters, summary.answers)}" if summary.answers else ""),
        f"Images      {summary.images:,}"
        + (
            f", from {_size(report.smallest_image)} to {_size(report.largest_image)} pixels"
            if any(report.largest_image)
            else ""
        ),
    ]
    lines += [f"Category    {count:>7,}  {name}" for name, count in summary.categories.most_common()]
    lines += [f"Note        {note}" for note in summary.notes()]
    if report.repeated_ids:
        lines.append(f"Note        {report.repeated_ids:,} ids are repeated: the later rows are called #2, #3, ...")
    if report.animations:
        lines.append(f"Note        {report.animations:,} images are animations: the first frame is used")
    lines += [f"Fault       {line}" for line in report.faults[:most]]
    if report.fault_count > most:
        lines.append(f"            and {report.fault_count - most:,} more faults (--all, or --json)")
    lines.append(
        f"{report.fault_count:,} faults: what has one is refused, or skipped with cache.on_error: skip"
        if report.lost
        else "No faults."
    )
    return "\n".join(lines)


def _range(lengths: list[int], count: int) -> str:
    return f"{lengths[0]:,} to {lengths[1]:,} characters, {np.round(lengths[2] / count):,.0f} on average"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"
