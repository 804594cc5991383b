"""Finished and running trainings side by side: what differs between them, and how far they got.

records = [read_run(directory) for directory in find_runs([Path("runs/sweep")])]
print(comparison_text(records))
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstsight.errors import DataError
from phase2_student.run_directory import RUN

_HIDDEN = {"cache digest", "training samples", "alignment", "teacher.weights", "teacher.tokens"}
"""Digests: that they differ is said, not what they are."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's directory says."""

    directory: Path
    identity: dict[str, Any]
    history: list[dict[str, Any]]
    """Of `training_history.json`."""
    finished: bool
    exact_match: float | None
    """Of the newest evaluation in the directory."""

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The rows of the history that have a validation."""
        return [row for row in self.history if row["validation"]]


def find_runs(directories: Sequence[Path]) -> list[Path]:
    """Directories of runs; one that is no run stands for the runs directly below it.

    Raises:
        DataError: no run is there.
    """
    found: list[Path] = []
    for directory in directories:
        here = [directory] if (directory / RUN).is_file() else sorted(p.parent for p in directory.glob(f"*/{RUN}"))
        if not here:
            raise DataError(
                f"{directory}: neither it nor a directory below it holds a {RUN}; give the directory of a run"
            )
        found += [path for path in here if path not in found]
    return found


def read_run(directory: Path) -> RunRecord:
    """Read a run's files; a run that has just begun has an empty history.

    Raises:
        DataError: a file that cannot be read.
    """
    history_file = directory / "training_history.json"
    try:
        identity = json.loads((directory / RUN).read_text(encoding="utf-8"))["identity"]
        history = json.loads(history_file.read_text(encoding="utf-8")) if history_file.exists() else []
        evaluations = sorted((directory / "evaluation").glob("evaluation_*.json"))
        exact_match = _exact_match(json.loads(evaluations[-1].read_text(encoding="utf-8"))) if evaluations else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory}: a file of this run cannot be read ({error})") from None
    return RunRecord(
        directory=directory,
        identity=identity,
        history=history,
        finished=(directory / "final").is_dir(),
        exact_match=exact_match,
    )


def _exact_match(evaluation: dict[str, Any]) -> float | None:
    students = [model for model in evaluation["models"] if model["role"] == "student" and model["samples"]]
    named = [model for model in students if model["name"] == "student"] or students[-1:]
    if not named:
        return None
    return sum(bool(sample["exact"]) for sample in named[0]["samples"]) / len(named[0]["samples"])


def differing_settings(records: Sequence[RunRecord]) -> list[str]:
    """Dotted names of what the runs were begun with and do not agree on."""
    names = sorted({name for record in records for name in record.identity})
    return [name for name in names if len({json.dumps(r.identity.get(name), sort_keys=True) for r in records}) > 1]


def labels(records: Sequence[RunRecord]) -> list[str]:
    """A short name per run: its directory's, with the one above where two are the same."""
    names = [record.directory.resolve().name for record in records]
    return [
        name if names.count(name) == 1 else f"{record.directory.resolve().parent.name}/{name}"
        for name, record in zip(names, records, strict=True)
    ]


def comparison(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One JSON object per run: settings that differ, losses on validation, agreement, exact match, time."""
    names = differing_settings(records)
    rows = []
    for label, record in zip(labels(records), records, strict=True):
        validations = record.validations
        final = validations[-1]["validation"] if validations else {}
        losses = [row["validation"]["loss"] for row in validations]
        rows.append(
            {
                "name": label,
                "directory": str(record.directory),
                "finished": record.finished,
                "settings": {name: record.identity.get(name) for name in names},
                "steps": record.history[-1]["step"] if record.history else 0,
                "best_validation_loss": min(losses, default=None),
                **{f"validation_{name}": final.get(name) for name in ("loss", "kd", "ce", "agreement")},
                "exact_match": record.exact_match,
                "seconds": sum(row.get("seconds", 0.0) for row in record.history),
            }
        )
    return rows


_COLUMNS = {
    "steps": ("steps", "{:,}"),
    "best_validation_loss": ("best loss", "{:.4f}"),
    "validation_loss": ("loss", "{:.4f}"),
    "validation_kd": ("KD", "{:.4f}"),
    "validation_ce": ("CE", "{:.4f}"),
    "validation_agreement": ("agreement", "{:.1%}"),
    "exact_match": ("exact", "{:.1%}"),
    "seconds": ("s", "{:,.0f}"),
}


def comparison_text(records: Sequence[RunRecord]) -> str:
    """A table, one line per run."""
    rows = comparison(records)
    names = differing_settings(records)
    table = [["run", *(name.rpartition(".")[2] for name in names), *(title for title, _ in _COLUMNS.values())]]
    digests = {
        name: {
            json.dumps(value): chr(ord("A") + n)
            for n, value in enumerate(dict.fromkeys(r.identity.get(name) for r in records))
        }
        for name in names
        if name in _HIDDEN
    }
    for row in rows:
        settings = [
            digests[name][json.dumps(value)] if name in digests else _shown(value)
            for name, value in row["settings"].items()
        ]
        figures = [
            "-" if row[key] is None or math.isnan(row[key]) else form.format(row[key])
            for key, (_, form) in _COLUMNS.items()
        ]
        table.append([row["name"] + ("" if row["finished"] else " (not finished)"), *settings, *figures])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append("Loss, KD, CE and agreement on validation; best loss is the lowest, the others are the last ones.")
    if {"loss.temperature", "loss.alpha", "loss.tail"} & set(names):
        lines.append(
            "Loss and KD of another temperature, alpha or tail are other quantities: compare CE, agreement and exact match."
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
