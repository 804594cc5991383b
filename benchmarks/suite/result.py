"""What a benchmark of `make bench` returns: ratios with their spread over repeats that took turns, and exponents of growth.

    results = [compared("step.time", "a step on the cache", "a stock step", mine=[9.7, 9.9], theirs=[16.4, 16.0], unit="s")]
    results = [Skipped(name="peers.time.trl", reason="trl is not installed")]

A part of the suite is a module with a function `results(quick)` that returns a list of these.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from phase2_student.runs.files import write_json

Unit = Literal["s", "ms", "MB", "GB", "bytes", "nats"]
_NOUNS: dict[Unit, str] = {
    "s": "time",
    "ms": "time",
    "MB": "memory",
    "GB": "memory",
    "bytes": "size",
    "nats": "distance",
}
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$")]
"""Part first: `step.time.exact`. README and tests refer to results by it."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(_Record):
    """A ratio of two things that were measured in turns, or the exponent of one as the samples grow."""

    name: Name
    what: str
    baseline: str
    """What it is divided by; for an exponent, what grows."""
    kind: Literal["ratio", "exponent"]
    median: FiniteFloat
    low: FiniteFloat
    """The smallest of the repeats."""
    high: FiniteFloat
    repeats: int = Field(ge=1)
    unit: Unit
    """Unit of the two figures that follow."""
    value: FiniteFloat
    """Median of `what`; for an exponent, at the largest size."""
    baseline_value: FiniteFloat
    """Median of `baseline`; for an exponent, of `what` at the smallest size."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"{self.name}: the median {self.median} is not within {self.low} to {self.high}")
        return self

    @property
    def shown(self) -> str:
        """The figure as it is printed: `1.24 x the time`, `n^0.98 in time`."""
        noun = _NOUNS[self.unit]
        return f"n^{self.median:.2f} in {noun}" if self.kind == "exponent" else f"{number(self.median)} x the {noun}"

    @property
    def spread(self) -> str:
        """The smallest and the largest of the repeats."""
        return f"{number(self.low)} to {number(self.high)}" if self.repeats > 1 else "once"

    @property
    def figures(self) -> str:
        """The figures of both sides."""
        first, second = number(self.value), number(self.baseline_value)
        return f"{second} to {first} {self.unit}" if self.kind == "exponent" else f"{first} / {second} {self.unit}"


class Skipped(_Record):
    """Something that was not measured."""

    name: Name
    reason: str


Outcome = Result | Skipped


class PartRun(_Record):
    """One part of the suite, as it ran in a process of its own."""

    part: str
    date: str
    commit: str
    """With `+` if files had been changed since."""
    quick: bool
    """Whether it ran with test sizes, so that the figures mean nothing."""
    facts: dict[str, str]
    """Machine and versions."""
    load: FiniteFloat
    """Load of the machine when it began (mean of a minute), without this process."""
    seconds: FiniteFloat
    peak_mb: FiniteFloat
    """Largest resident set of the part's process, or of one that it started."""
    results: list[Result]
    skipped: list[Skipped]


class Suite(_Record):
    """The file of results: the last run of each part."""

    parts: dict[str, PartRun] = {}

    @classmethod
    def read(cls, path: Path) -> Suite:
        """The file's content; empty if there is no file. ValueError: it is not such a file."""
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Replace the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.model_dump(mode="json"))

    def with_part(self, run: PartRun, order: Sequence[str]) -> Suite:
        """The suite with this run in place of the part's last one, its parts in a given order."""
        parts = {**self.parts, run.part: run}
        return Suite(parts={name: parts[name] for name in sorted(parts, key=list(order).index)})

    def find(self, name: str) -> Result | None:
        """A result by its name."""
        return next((each for run in self.parts.values() for each in run.results if each.name == name), None)


def compared(
    name: str, what: str, baseline: str, *, mine: Sequence[float], theirs: Sequence[float], unit: Unit
) -> Outcome:
    """The ratio of two measurements that took turns: median, smallest and largest over the turns.

    It is skipped if the baseline measured nothing, such as memory on a system that does not report it.

    Args:
        name: name of the result.
        what: what is measured.
        baseline: what it is compared with.
        mine: one figure for each turn.
        theirs: the same for the baseline.
        unit: unit of the figures.
    """
    pairs = list(zip(mine, theirs, strict=True))
    if not all(theirs):
        return Skipped(name=name, reason=f"{baseline}: measured 0 {unit}")
    ratios = [one / other for one, other in pairs]
    return Result(
        name=name,
        what=what,
        baseline=baseline,
        kind="ratio",
        median=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        repeats=len(ratios),
        unit=unit,
        value=statistics.median(mine),
        baseline_value=statistics.median(theirs),
    )


def growth(name: str, what: str, sizes: Sequence[int], turns: Sequence[Sequence[float]], unit: Unit) -> Result:
    """The exponent of a figure as samples grow: the slope of its logarithm, fitted by least squares for each turn.

    Args:
        name: name of the result.
        what: what is measured.
        sizes: numbers of samples, ascending.
        turns: one figure for each size, for every turn.
        unit: unit of the figures.
    """
    slopes = [float(np.polyfit(np.log(sizes), np.log(np.maximum(each, _SMALLEST)), 1)[0]) for each in turns]
    return Result(
        name=name,
        what=what,
        baseline=f"{sizes[0]:,} to {sizes[-1]:,} samples",
        kind="exponent",
        median=statistics.median(slopes),
        low=min(slopes),
        high=max(slopes),
        repeats=len(slopes),
        unit=unit,
        value=statistics.median(each[-1] for each in turns),
        baseline_value=statistics.median(each[0] for each in turns),
    )


_SMALLEST = 1e-9
"""Replaces 0, which has no logarithm."""


def missing(package: str, *names: str) -> list[Skipped]:
    """The results that are skipped because another project's package is not installed; empty if it is."""
    if find_spec(package) is not None:
        return []
    return [Skipped(name=name, reason=f"{package} is not installed; pip install 'firstsight[bench]'") for name in names]


def text_table(outcomes: Iterable[Outcome]) -> str:
    """Results for the terminal, a line each."""
    lines = []
    for each in outcomes:
        if isinstance(each, Skipped):
            lines.append(f"{each.name}: skipped: {each.reason}")
        else:
            spread = f"{each.spread}, {each.repeats} turns" if each.repeats > 1 else each.spread
            lines.append(f"{each.what} / {each.baseline}: {each.shown} ({spread}; {each.figures})")
    return "\n".join(lines)


def number(value: float) -> str:
    """A number to three significant digits; from a thousand on, as a whole number."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"
