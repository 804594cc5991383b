"""What a check found, and the report about it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firstsight.data.sample import Sample
from firstsight.data.summary import DataSummary
from firstsight.errors import DataError
from storage.wording import counted

MAX_FAULTS = 10_000
"""How many faults are kept as lines; the rest are counted."""


@dataclass(kw_only=True)
class DataReport:
    """What a check found."""

    summary: DataSummary = field(default_factory=DataSummary)
    faults: list[str] = field(default_factory=list)
    """A line for each row, image or file that cannot be used; the first `MAX_FAULTS`."""
    fault_count: int = 0
    row_faults: int = 0
    """How many of them are faults of rows and files, which are not samples and cannot be skipped."""
    repeated_ids: int = 0
    tokens: bool = False
    """Whether `lengths` are tokens of prompt and answers, images included; else they are characters of the texts."""
    decoded: bool = True
    """Whether every image was decoded; else only its header was read."""
    lengths: array[int] = field(default_factory=lambda: array("I"), repr=False)
    """One number per sample without a fault."""
    answer_characters: array[int] = field(default_factory=lambda: array("I"), repr=False)
    """One number per answer."""
    answers: Counter[int] = field(default_factory=Counter)
    """Rows by the number of their answers."""
    animations: int = 0
    """Images with several frames, of which the first is used."""
    widths: array[int] = field(default_factory=lambda: array("I"), repr=False)
    """One number per image, each content once."""
    heights: array[int] = field(default_factory=lambda: array("I"), repr=False)

    @property
    def lost(self) -> bool:
        """Whether anything would be refused, or left out with `cache.on_error: skip`."""
        return self.fault_count > 0

    def row_fault(self, error: DataError) -> None:
        """Keep the fault of a row or a file."""
        self.row_faults += 1
        self.fault(error)

    def fault(self, error: DataError) -> None:
        """Keep the fault of a sample."""
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(str(error))

    def add_texts(self, sample: Sample) -> None:
        """Count the answers and the characters of a sample."""
        answers = sample.answers
        self.answers[len(answers)] += 1
        if self.summary.turns == "last":
            answers = () if sample.answer is None else answers[-1:]
        self.answer_characters.extend(map(len, answers))
        if not self.tokens:
            texts = (part.get("text", "") for message in sample.messages for part in message["content"])
            self.lengths.append(sum(map(len, texts)))

    def add_picture(self, size: tuple[int, int], *, several: bool) -> None:
        """Count an image: width and height, and whether it has several frames."""
        self.widths.append(size[0])
        self.heights.append(size[1])
        self.animations += several

    def as_json(self) -> dict[str, Any]:
        """The report as plain types."""
        longer = list(map(max, self.widths, self.heights))
        return {
            **self.summary.as_json(),
            "faults": self.faults,
            "fault_count": self.fault_count,
            "row_faults": self.row_faults,
            "repeated_ids": self.repeated_ids,
            "animations": self.animations,
            "images_decoded": self.decoded,
            "answers_per_row": {str(count): rows for count, rows in sorted(self.answers.items())},
            "answer_characters": spread(self.answer_characters),
            "tokens" if self.tokens else "characters": spread(self.lengths),
            "longer_sides": spread(longer),
            "lost": self.lost,
        }


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Least, quantiles, most and mean; None if there are no values."""
    if not len(values):
        return None
    found = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).round(1).tolist()
    return {
        **dict(zip(("least", "p5", "median", "p95", "most"), found, strict=True)),
        "mean": round(float(np.mean(values)), 1),
    }


def report_text(report: DataReport, *, most: int = 20) -> str:
    """The report as lines for the terminal, with at most the first `most` faults."""
    summary = report.summary
    rows = sum(summary.rows.values())
    by_split = ", ".join(f"{count:,} {split}" for split, count in summary.rows.items())
    sizes = list(zip(report.widths, report.heights, strict=True))
    least, most_pixels = min(sizes, key=_pixels, default=(0, 0)), max(sizes, key=_pixels, default=(0, 0))
    lines = [
        f"Rows        {rows:,} ({by_split})" if rows else "Rows        0",
        f"Answers     {counted(rows - summary.unanswered, *_with_answer(summary))}, "
        f"{counted(summary.unanswered, 'does not', 'do not')}" + _range(report.answer_characters, "characters"),
        f"Images      {summary.images:,}"
        + (f", from {_size(least)} to {_size(most_pixels)} pixels" if sizes else "")
        + ("" if report.decoded or not sizes else "; only their headers were read"),
        f"Lengths     {counted(len(report.lengths), 'row')}"
        + _range(report.lengths, "tokens" if report.tokens else "characters"),
    ]
    if len(report.answers) > 1:
        several = ", ".join(
            f"{counted(rows, 'row')} with {count}" for count, rows in sorted(report.answers.items())[:8]
        )
        lines.append(f"            answers per row: {several}{', ...' if len(report.answers) > 8 else ''}")
    lines += [f"Category    {count:>7,}  {name}" for name, count in summary.categories.most_common()]
    lines += [f"Note        {note}" for note in summary.notes()]
    if report.repeated_ids:
        lines.append(
            f"Note        {counted(report.repeated_ids, 'id is', 'ids are')} repeated; later rows are called #2, #3, ..."
        )
    if report.animations:
        lines.append(
            f"Note        {counted(report.animations, 'image is an animation', 'images are animations')}; the first frame is used"
        )
    lines += [f"Fault       {line}" for line in fault_lines(report, most)]
    skipped = ", or skipped with cache.on_error: skip" if report.fault_count > report.row_faults else ""
    lines.append(
        f"{counted(report.fault_count, 'fault')}; a row with a fault is refused{skipped}"
        if report.lost
        else "No faults."
    )
    return "\n".join(lines)


def _with_answer(summary: DataSummary) -> tuple[str, str]:
    """What is said of rows that have an answer, of one and of several."""
    return ("row ends with one", "rows end with one") if summary.earlier_answers else ("row has one", "rows have one")


def fault_lines(report: DataReport, most: int) -> list[str]:
    """The first `most` faults, and how many more there are."""
    more = report.fault_count - min(most, len(report.faults))
    rest = [f"and {more:,} more (firstsight data check --all, or --json)"] if more else []
    return report.faults[:most] + rest


def refusal(report: DataReport, *, most: int = 20) -> DataError:
    """All faults as one error; at most the first `most`."""
    if report.fault_count == 1:
        return DataError(report.faults[0])
    return DataError("\n  ".join([f"the data have {report.fault_count:,} faults:", *fault_lines(report, most)]))


def _range(values: Sequence[int], unit: str) -> str:
    found = spread(values)
    if found is None:
        return ""
    return f"; {found['least']:,.0f} to {found['most']:,.0f} {unit}, {found['mean']:,.0f} on average"


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"
