"""Shows and writes rows as soon as they exist; a measurement that fails, or that time does not allow, is a row as well.

    board = Board(budget=330, out=Path("gpu.json"), facts={"GPU": "..."})
    found = board.measure("loss", "chunk 256", about=2, work=lambda: {"ms": 3.4})     # None: failed or skipped

The JSON file is rewritten with every row, so whatever ends the process, what was measured is kept.
"""

from __future__ import annotations

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

Figures = dict[str, Any]

_PATIENCE = 10.0
"""Seconds beyond three times what a row is estimated to take, after which it is given up."""


class OutOfTime(BaseException):
    """The budget ran out during a measurement; not an Exception, so that no code on the way takes it for a failed sample."""


class Board:
    """Collects the rows of a run.

    Args:
        budget: seconds from the start of this object.
        out: the JSON file; None: no file.
        facts: the machine and the versions.
    """

    def __init__(self, budget: float, out: Path | None, facts: dict[str, Any]) -> None:
        self.budget = budget
        self.out = out
        self.facts = facts
        self.rows: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, str]] = {}
        """By part: date, commit and command."""
        self.failed = 0
        """Measurements of this process that failed."""
        self._begin = time.perf_counter()

    def adopt(self, path: Path) -> None:
        """Begin with the rows of a file, each until it has new figures. ValueError: another machine or other versions."""
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in self.facts | found["facts"]:
            others = [facts.get(name) for facts in (found["facts"], self.facts)]
            if others[0] != others[1]:
                raise ValueError(f"{path}: measured with {name} {others[0]}, here it is {others[1]}")
        self.rows, self.runs = found["rows"], found.get("runs", {})  # older files have no runs

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self._begin)

    def measure(self, part: str, name: str, *, about: float, work: Callable[[], Figures]) -> Figures | None:
        """Figures of a measurement, which become a row.

        Args:
            part: part of the script.
            name: name of the row.
            about: estimated seconds; if fewer are left, the measurement is skipped.
            work: measures.
        """
        if self.left < about:
            self.skip(part, name, f"{self.left:.0f} s left, takes about {about:.0f} s")
            return None
        most = min(self.left, _PATIENCE + 3 * about)  # one slow row must not take the time of all others
        try:
            with _alarm(most):
                figures = work()
        except OutOfTime:
            self.skip(part, name, f"given up after {most:.0f} s, was estimated to take about {about:.0f} s")
        except Exception as error:  # noqa: BLE001 the next measurement still runs
            self.fail(part, name, error)
        else:
            self.add(part, name, figures)
            return figures
        finally:
            free_memory()
        return None

    def fail(self, part: str, name: str, error: Exception) -> None:
        """Add a row that says why a measurement, or a whole part, failed."""
        lines = str(error).strip().splitlines() or [""]
        trace = "".join(traceback.format_exception(error))
        self.failed += 1
        self.add(part, name, {"failed": f"{type(error).__name__}: {lines[0]}"[:300], "trace": trace})

    def skip(self, part: str, name: str, reason: str) -> None:
        """Add a row that says why something was not measured."""
        self.add(part, name, {"skipped": reason})

    def find(self, part: str, name: str) -> Figures | None:
        """The figures of a row that was measured."""
        rows = [row for row in self.rows if (row["part"], row["name"]) == (part, name)]
        return rows[0] if rows and is_measured(rows[0]) else None

    def table(self) -> str:
        """All rows in Markdown, a table for each part."""
        parts = list(dict.fromkeys(row["part"] for row in self.rows))
        return "\n\n".join(self._table_of(part) for part in parts)

    def _table_of(self, part: str) -> str:
        rows = [row for row in self.rows if row["part"] == part]
        measured = [row for row in rows if is_measured(row)]
        columns = list(dict.fromkeys(key for row in measured for key in row if key not in ("part", "name", "at")))
        lines = [f"| {part} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            reason = next((f"{kind}: {row[kind]}" for kind in ("failed", "skipped") if kind in row), None)
            cells = [cell(row.get(column, "")) for column in columns] if reason is None else [reason]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def add(self, part: str, name: str, figures: Figures) -> None:
        """A row: shown at once, and written. It replaces an earlier one unless only that one has figures."""
        at = round(self.budget - self.left, 1)
        shown = "  ".join(f"{key} {cell(value)}" for key, value in figures.items() if key != "trace")
        click.echo(f"{at:6.1f} s  {part:8} {name:44} {shown}")
        if "trace" in figures:
            click.echo(figures["trace"], err=True)
        row = {"part": part, "name": name, "at": at, **figures}
        places = [place for place, old in enumerate(self.rows) if (old["part"], old["name"]) == (part, name)]
        if not places:
            self.rows.append(row)
        elif is_measured(row) or not is_measured(self.rows[places[0]]):
            self.rows[places[0]] = row
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            content = {"facts": self.facts, "runs": self.runs, "rows": self.rows}
            self.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_measured(row: dict[str, Any]) -> bool:
    """Whether a row has figures."""
    return not {"failed", "skipped"} & row.keys()


def free_memory() -> None:
    """Give memory that nothing refers to any more back to the device."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def cell(value: Any) -> str:
    """A figure as it is printed."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    other = signal.setitimer(
        signal.ITIMER_REAL, max(seconds, 1e-3)
    )  # the caller's own alarm, such as pytest's, continues afterwards
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *other)
