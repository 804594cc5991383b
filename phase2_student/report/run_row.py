"""One row per run: what differs between runs, how far they got, and how near their students came to the teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from firstsight.recipe import LossSection
from phase2_student.evaluation.files import read_evaluation, student_of
from phase2_student.evaluation.results import ModelResult
from phase2_student.runs.records import Run

HIDDEN = {"cache digest", "targets digest", "training samples", "alignment", "teacher.weights", "teacher.tokens"}
"""Digests: shown as A, B, ..., since only whether they differ is of interest."""
WHOLE = ("exact", "online")
"""Targets that are whole distributions; a divergence on stored entries and a bucket is a lower bound of the one on whole distributions."""


def students_of(runs: Sequence[Run], given: Path | None = None) -> list[ModelResult | None]:
    """The student of each run as it was evaluated; None if it was not.

    Args:
        runs: the newest evaluation in each run's directory is read.
        given: an evaluation file, or a directory with evaluation files, to read instead; its models have the names of the runs.

    Raises:
        DataError: an evaluation that cannot be read.
    """
    if given is not None:
        evaluation = read_evaluation(runs, given)
        models = evaluation.models if evaluation else []
        return [student_of(models, run) for run in runs]
    read = [(run, read_evaluation([run])) for run in runs]
    return [student_of(evaluation.models, run) if evaluation else None for run, evaluation in read]


def exact_match(student: ModelResult) -> float | None:
    """The share of exact answers; None if no sample has an answer to compare with."""
    known = [record.exact for record in student.samples if record.exact is not None]
    return sum(known) / len(known) if known else None


def evaluated_kl(student: ModelResult) -> float | None:
    """KL(teacher || student) at T = 1 per answer position, nats; None if it is not known, or not finite for some sample."""
    known = [record for record in student.samples if record.soft_positions]
    if not known or any(record.kl_sum is None for record in known):
        return None
    return sum(record.kl_sum or 0.0 for record in known) / sum(record.soft_positions or 0 for record in known)


def measured_on(run: Run) -> str:
    """The targets that the KL of a run's validations was measured on."""
    targets = str(run.identity.get("targets", "cache"))
    if targets != "cache":
        return targets
    if "tail" in run.identity:
        return f"tail_rank {str(run.identity['tail']).rpartition(' ')[2]}"
    return f"top_k {run.key('cache.top_k')}"


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted names of the settings in which the runs differ, as the runs began."""
    names = sorted({name for run in runs for name in run.identity})
    return [name for name in names if len({json.dumps(run.setting(name), sort_keys=True) for run in runs}) > 1]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run; what is not known is None. `dataclasses.asdict` makes the JSON of `fs-student compare --json`."""

    name: str
    directory: str
    finished: bool
    settings: dict[str, object]
    """The settings in which the runs differ, by dotted name."""
    steps: int
    best_validation_loss: float | None
    validation_loss: float | None
    """This and the following at the last validation."""
    validation_kd: float | None
    validation_ce: float | None
    validation_agreement: float | None
    validation_kl: float | None
    """KL(teacher || student) at T = 1, whatever was minimised."""
    measured_on: str
    """The targets on which `validation_kl` was measured."""
    exact_match: float | None
    evaluation_kl: float | None
    evaluated_on: str | None
    """The targets on which `evaluation_kl` was measured: `ModelResult.distance_targets`."""
    seconds: float
    best_in: list[str]
    """The fields above in which no other run is better. Fields of the loss are compared only if all runs minimise the same loss,
    and a KL only with those measured on the same kind of targets."""


def run_rows(runs: Sequence[Run], evaluation: Path | None = None) -> list[RunRow]:
    """One row per run: settings that differ, losses on validation, agreement, exact match, time.

    Args:
        runs: as `read_runs` reads them.
        evaluation: as `given` of `students_of`.
    """
    names = differing_settings(runs)
    rows = []
    for run, student in zip(runs, students_of(runs, evaluation), strict=True):
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
                validation_kl=final.get("kl"),
                measured_on=measured_on(run),
                exact_match=None if student is None else exact_match(student),
                evaluation_kl=None if student is None else evaluated_kl(student),
                evaluated_on=None if student is None else student.distance_targets,
                seconds=sum(row.get("seconds", 0.0) for row in run.history.epochs),
                best_in=[],
            )
        )
    of_one_loss = one_loss(runs)
    for field, sign in _BETTER.items():
        if of_one_loss or field not in _OF_THE_LOSS:
            for same in comparable(rows, field, _KL_OF):
                mark_best(same, field, sign)
    return rows


def one_loss(runs: Sequence[Run]) -> bool:
    """Whether all runs minimise the same loss: the same settings on the same form of the teacher's distribution."""

    def made_of(run: Run) -> str:
        entries = None if run.identity.get("targets") in WHOLE else run.key("cache.top_k")
        settings = [run.setting(f"loss.{key}") for key in LossSection.model_fields]
        return json.dumps([*settings, entries, run.identity.get("tail")])

    return len({made_of(run) for run in runs}) == 1


class Marked(Protocol):
    """A row whose best figures are marked."""

    @property
    def best_in(self) -> list[str]:
        """Names of its fields."""


Row = TypeVar("Row", bound=Marked)


def comparable(rows: Sequence[Row], field: str, kinds: dict[str, str]) -> list[list[Row]]:
    """The rows in lists, within which the figures of a field can be compared; rows of unknown targets are left out.

    Args:
        rows: rows of runs or groups.
        field: the figure's field.
        kinds: for such a field, the field that says on which targets it was measured.
    """
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(getattr(row, kinds[field]) if field in kinds else "", []).append(row)
    return [same for kind, same in found.items() if kind is not None]


def mark_best(
    rows: Sequence[Row], field: str, sign: int, value_of: Callable[[Row, str], float | None] = getattr
) -> None:
    """Add a field to `best_in` of the rows that are best in it, unless all rows are equal in it."""
    figures = {n: value_of(row, field) for n, row in enumerate(rows)}
    known = {n: sign * value for n, value in figures.items() if value is not None and math.isfinite(value)}
    if len(known) > 1 and len(set(known.values())) > 1:
        for number, value in known.items():
            if value == max(known.values()):
                rows[number].best_in.append(field)


def is_known(value: float | None) -> bool:
    """Whether there is a finite figure."""
    return value is not None and math.isfinite(value)


_BETTER = {
    "best_validation_loss": -1,
    "validation_loss": -1,
    "validation_kd": -1,
    "validation_ce": -1,
    "validation_agreement": 1,
    "validation_kl": -1,
    "exact_match": 1,
    "evaluation_kl": -1,
}
"""What is compared, and whether more of it is better (1) or less (-1)."""
_OF_THE_LOSS = {"best_validation_loss", "validation_loss", "validation_kd"}
_KL_OF = {"validation_kl": "measured_on", "evaluation_kl": "evaluated_on"}
