"""What a pass over the rows finds besides faults: counts, repeated and leaked rows, what is not trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from firstsight.data.columns import ColumnUse
from firstsight.data.compact import NumberSet
from firstsight.data.sample import Sample
from firstsight.data.source import Turns
from storage.wording import counted


@dataclass(kw_only=True)
class DataSummary:
    """Counts over the samples of both splits; it keeps about 10 bytes per sample."""

    rows: Counter[str] = field(default_factory=Counter)
    """By split."""
    categories: Counter[str] = field(default_factory=Counter)
    """Rows by category in both splits; rows without one are not counted."""
    images: int = 0
    """Images of all rows."""
    turns: Turns = "all"
    """Which assistant messages are answers."""
    answers: int = 0
    """The number of answers in all rows."""
    unanswered: int = 0
    """Rows whose last message is not an answer."""
    earlier_answers: int = 0
    """Assistant messages before the closing one."""
    with_earlier_answers: int = 0
    """Rows that have earlier answers and, with `turns: all`, a closing one."""
    timed: int = 0
    """Rows that give the times of their frames."""
    repeated: Counter[str] = field(default_factory=Counter)
    """By split: rows whose content an earlier row of the split has."""
    leaked: int = 0
    """Validation rows whose content a training row has."""
    first_leaks: list[str] = field(default_factory=list)
    """Places of the first of them."""
    columns: ColumnUse = field(default_factory=ColumnUse, repr=False)
    """Whether the columns that the recipe names are there."""
    _seen: dict[str, NumberSet] = field(
        default_factory=lambda: {"train": NumberSet(), "validation": NumberSet()}, repr=False
    )

    def add(self, split: str, sample: Sample) -> bool:
        """Count a sample. Returns whether no row before it has the same content. Training rows come first.

        Args:
            split: `train` or `validation`.
            sample: one row of it.
        """
        self.rows[split] += 1
        if sample.category is not None:
            self.categories[sample.category] += 1
        self.images += len(sample.images)
        self.timed += sample.times is not None
        self.unanswered += sample.answer is None
        earlier = sample.earlier_answers
        self.earlier_answers += earlier
        self.answers += (sample.answer is not None) + (earlier if self.turns == "all" else 0)
        self.with_earlier_answers += (len(sample.answers) > 1) if self.turns == "all" else (earlier > 0)
        mark = int(sample.key[:16], 16)
        new = self._seen[split].add(mark)
        if not new:
            self.repeated[split] += 1
        if split == "validation" and mark in self._seen["train"]:
            self.leaked += 1
            if len(self.first_leaks) < 5:
                self.first_leaks.append(sample.place)
            return False
        return new

    def as_json(self) -> dict[str, Any]:
        """The counts as plain types, with the notes."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        return {
            **{name: dict(value) if isinstance(value, Counter) else value for name, value in counts.items()},
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What a user should know before a dump or a training run, one line each."""
        lines = []
        for split, count in self.repeated.items():
            use = "trained on" if split == "train" else "measured"
            lines.append(
                counted(
                    count,
                    f"of {self.rows[split]:,} {split} rows repeats",
                    f"of {self.rows[split]:,} {split} rows repeat",
                )
                + f" an earlier one; each is {use}, and their targets are shared"
            )
        if self.leaked:
            lines.append(
                f"{counted(self.leaked, 'validation row is', 'validation rows are')} also in the training data "
                f"({', '.join(self.first_leaks)}{', ...' if self.leaked > len(self.first_leaks) else ''}), "
                "so validation results are too good"
            )
        if self.timed:
            lines.append(
                f"{counted(self.timed, 'row has', 'rows have')} times of frames: part of the sample's key, but shown to no model"
            )
        if self.with_earlier_answers:
            several = f"{counted(self.with_earlier_answers, 'row has', 'rows have')} several answers"
            lines.append(
                f"{several}; all {self.answers:,} answers are learned"
                if self.turns == "all"
                else f"{several}; the {self.earlier_answers:,} before the last are only context (data.turns: last)"
            )
        return lines + self.columns.notes()
