"""Runs side by side, finished or not: which settings differ, and how far they are.

runs = read_runs(find_runs([Path("runs/sweep")]))
print(run_table(runs))
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from firstsight.recipe import LossSection
from phase2_student.evaluation.files import read_evaluation, student_of
from phase2_student.runs.records import Run

_HIDDEN = {"cache digest", "targets digest", "training samples", "alignment", "teacher.weights", "teacher.tokens"}
"""Digests: shown as A, B, ..., since it only matters whether they differ."""


def exact_match(run: Run) -> float | None:
    """Exact match of the run's student in the newest evaluation in the run's directory; None if there is none, or
    no sample has a true answer.

    Raises:
        DataError: the evaluation cannot be read.
    """
    evaluation = read_evaluation([run])
    student = student_of(evaluation.models, run) if evaluation else None
    if student is None:
        return None
    known = [record.exact for record in student.samples if record.exact is not None]
    return sum(known) / len(known) if known else None


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted names of the settings that differ between the runs."""
    names = sorted({name for run in runs for name in run.identity})
    return [name for name in names if len({json.dumps(run.setting(name), sort_keys=True) for run in runs}) > 1]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run; fields that are not known are None. `fs-student compare --json` prints it through `dataclasses.asdict`."""

    name: str
    directory: str
    finished: bool
    settings: dict[str, object]
    """The settings that differ between the runs, by dotted name."""
    steps: int
    best_validation_loss: float | None
    validation_loss: float | None
    """This and the following fields are from the last validation."""
    validation_kd: float | None
    validation_ce: float | None
    validation_agreement: float | None
    exact_match: float | None
    seconds: float
    best_in: list[str]
    """The fields above in which no other run is better; losses only if they are comparable between all runs."""


def run_rows(runs: Sequence[Run]) -> list[RunRow]:
    """One row per run: settings that differ, losses on validation, agreement, exact match, time."""
    names = differing_settings(runs)
    rows = []
    for run in runs:
        validations = run.history.validations
        final = validations[-1] if validations else {}
        rows.append(
            RunRow(
                name=run.name,
                directory=str(run.directory),
                finished=run.finished,
                settings={name: run.setting(name) for name in names},
                steps=run.history.last_step,
                best_validation_loss=run.best_validation_loss,
                validation_loss=final.get("loss"),
                validation_kd=final.get("kd"),
                validation_ce=final.get("ce"),
                validation_agreement=final.get("agreement"),
                exact_match=exact_match(run),
                seconds=sum(row.get("seconds", 0.0) for row in run.history.epochs),
                best_in=[],
            )
        )
    same_loss = _one_loss(runs)
    for field, sign in _BETTER.items():
        if same_loss or field not in _OF_THE_LOSS:
            _mark_best(rows, field, sign)
    return rows


def _one_loss(runs: Sequence[Run]) -> bool:
    """Whether the losses of all runs are comparable: same settings of the loss, same kind of targets."""

    def made_of(run: Run) -> str:
        entries = None if run.identity.get("targets") in _WHOLE else run.key("cache.top_k")
        settings = [run.setting(f"loss.{key}") for key in LossSection.model_fields]
        return json.dumps([*settings, entries, run.identity.get("tail")])

    return len({made_of(run) for run in runs}) == 1


def _mark_best(rows: Sequence[RunRow], field: str, sign: int) -> None:
    known = {n: sign * value for n, row in enumerate(rows) if _is_known(value := getattr(row, field))}
    if len(known) > 1 and len(set(known.values())) > 1:
        for number, value in known.items():
            if value == max(known.values()):
                rows[number].best_in.append(field)


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


_BETTER = {
    "best_validation_loss": -1,
    "validation_loss": -1,
    "validation_kd": -1,
    "validation_ce": -1,
    "validation_agreement": 1,
    "exact_match": 1,
}
"""The fields that are compared, and whether more (1) or less (-1) is better."""
_WHOLE = ("exact", "online")
"""Kinds of targets that are whole distributions. The divergence on stored entries and a bucket is only a lower bound of theirs."""
_OF_THE_LOSS = {"best_validation_loss", "validation_loss", "validation_kd"}


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


def run_table(runs: Sequence[Run]) -> str:
    """The rows as text, one line per run."""
    rows = run_rows(runs)
    names = differing_settings(runs)
    table = [["run", *(name.rpartition(".")[2] for name in names), *(title for title, _ in _COLUMNS.values())]]
    digests = {
        name: {
            json.dumps(value): chr(ord("A") + n)
            for n, value in enumerate(dict.fromkeys(run.setting(name) for run in runs))
        }
        for name in names
        if name in _HIDDEN
    }
    starred = {name for row in rows for name in row.best_in}
    for row in rows:
        settings = [
            digests[name][json.dumps(value)] if name in digests else _shown(value)
            for name, value in row.settings.items()
        ]
        figures = []
        for name, (_, form) in _COLUMNS.items():
            value = getattr(row, name)
            shown = "-" if value is None or math.isnan(value) else form.format(value)
            figures.append(shown + ("*" if name in row.best_in else " " * (name in starred)))
        table.append([row.name + ("" if row.finished else " (not finished)"), *settings, *figures])
    table[0] = [cell + " " * (name in starred) for cell, name in zip(table[0], ["", *names, *_COLUMNS], strict=True)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        "Loss, KD, CE and agreement are from validation: best loss is the lowest, the others are from the last validation."
        + (" *: the best of these runs." if starred else "")
    )
    if not _one_loss(runs):
        lines.append(
            "These runs differ in settings of the loss or in targets, so loss and KD are not comparable: compare CE, agreement and "
            "exact match."
        )
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
