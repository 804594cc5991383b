"""Finished and running trainings side by side: what differs between them, and how far they got.

runs = read_runs(find_runs([Path("runs/sweep")]))
print(comparison_text(runs))
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from phase2_student.evaluation.evaluations import read_evaluation, student_of
from phase2_student.runs.records import Run

_HIDDEN = {"cache digest", "training samples", "alignment", "teacher.weights", "teacher.tokens"}
"""Digests: that they differ is said, not what they are."""


def exact_match(run: Run) -> float | None:
    """Of the run's student in the newest evaluation in the run's directory; None where there is none.

    Raises:
        DataError: an evaluation that cannot be read.
    """
    evaluation = read_evaluation([run])
    student = student_of(evaluation["models"], run) if evaluation else None
    if student is None:
        return None
    right: int = sum(sample["exact"] for sample in student["samples"])
    return right / len(student["samples"])


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted names of what the runs were begun with and do not agree on."""
    names = sorted({name for run in runs for name in run.identity})
    return [name for name in names if len({json.dumps(run.identity.get(name), sort_keys=True) for run in runs}) > 1]


def comparison(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One JSON object per run: settings that differ, losses on validation, agreement, exact match, time."""
    names = differing_settings(runs)
    rows = []
    for run in runs:
        validations = run.validations
        final = validations[-1]["validation"] if validations else {}
        rows.append(
            {
                "name": run.name,
                "directory": str(run.directory),
                "finished": run.finished,
                "settings": {name: run.identity.get(name) for name in names},
                "steps": run.history[-1]["step"] if run.history else 0,
                "best_validation_loss": run.best_validation_loss,
                **{f"validation_{name}": final.get(name) for name in ("loss", "kd", "ce", "agreement")},
                "exact_match": exact_match(run),
                "seconds": sum(row.get("seconds", 0.0) for row in run.history),
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


def comparison_text(runs: Sequence[Run]) -> str:
    """A table, one line per run."""
    rows = comparison(runs)
    names = differing_settings(runs)
    table = [["run", *(name.rpartition(".")[2] for name in names), *(title for title, _ in _COLUMNS.values())]]
    digests = {
        name: {
            json.dumps(value): chr(ord("A") + n)
            for n, value in enumerate(dict.fromkeys(run.identity.get(name) for run in runs))
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
    if any(name.startswith("loss.") for name in names):
        lines.append(
            "Loss and KD of other settings of the loss are other quantities: compare CE, agreement and exact match."
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
