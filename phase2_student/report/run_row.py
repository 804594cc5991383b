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
from storage.canonical import digest_of

HIDDEN = {
    *("cache digest", "targets digest", "training samples", "validation samples"),
    *("alignment", "teacher.weights", "teacher.tokens"),
}
"""Digests: shown as A, B, ..., since only whether they differ is of interest."""
WHOLE = ("exact", "online")
"""Targets that are whole distributions; a divergence on stored entries and a bucket is a lower bound of the one on whole distributions."""


def students_of(
    runs: Sequence[Run], given: Path | None = None, left_out: dict[str, str] | None = None
) -> list[ModelResult | None]:
    """The student of each run as it was evaluated; None if it was not.

    Args:
        runs: the newest evaluation in each run's directory is read.
        given: an evaluation file, or a directory with evaluation files, to read instead.
        left_out: gets the reason for each run, by name, whose evaluation is of another student.

    Raises:
        DataError: an evaluation that cannot be read.
    """
    left_out = {} if left_out is None else left_out
    if given is not None:
        evaluation = read_evaluation(runs, given, left_out=left_out)
        models = evaluation.models if evaluation else []
        return [student_of(models, run) for run in runs]
    read = [(run, read_evaluation([run], left_out=left_out)) for run in runs]
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


def teacher_of(run: Run) -> str:
    """The name of a run's teacher in its recipe, without directories: a run trains only on the cache of such a teacher."""
    return Path(str(run.key("teacher.model") or "")).name


def targets_of(runs: Sequence[Run]) -> list[str]:
    """For each run a digest of the teacher's targets, the same one for runs that are known to have targets from one source.

    Runs are known to if they began on a cache with the same content, or with the same targets of their own samples, or have the
    same teacher in memory. "": not recorded.
    """
    marks: list[set[str]] = []
    for run in runs:
        teacher = {name: value for name, value in run.identity.items() if name.startswith("teacher.")}
        digests = [run.identity.get("targets digest"), run.identity.get("cache digest"), run.facts.get("cache_digest")]
        marks.append({*filter(None, digests), *([json.dumps(teacher, sort_keys=True)] if teacher else [])})
    joined: list[set[str]] = []
    for mine in marks:
        touching = [each for each in joined if each & mine]
        joined = [each for each in joined if not each & mine] + [mine.union(*touching)]
    return [min(next(each for each in joined if each >= mine)) if mine else "" for mine in marks]


def questions_of(students: Sequence[ModelResult | None]) -> list[str | None]:
    """For each student a digest of what it was asked: by content, or by the samples' ids if any file is an older one."""
    known = [student for student in students if student is not None]
    by_content = all(student.questions is not None for student in known)
    return [
        None if student is None else digest_of(student.questions if by_content else student.sample_ids)
        for student in students
    ]


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted names of the settings in which the runs differ, as the runs began."""
    names = sorted({name for run in runs for name in run.settings})
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
    """The kind of targets on which `validation_kl` was measured."""
    targets_of: str
    """Digest of these targets; runs of one cache or of one teacher in memory have the same. "": not recorded."""
    teacher: str
    """The teacher's name in the recipe."""
    validated_on: str
    """Which samples were validated: a digest, or their number if that is all that was recorded; "": neither was."""
    exact_match: float | None
    evaluation_kl: float | None
    evaluated_on: str | None
    """The kind of targets on which `evaluation_kl` was measured: `ModelResult.distance_targets`."""
    evaluated_targets: str
    """Digest of these targets; "": not recorded."""
    evaluated_samples: str | None
    """Digest of the questions of the evaluation; None: it was not evaluated."""
    evaluation_left_out: str | None
    """Why an evaluation that was found is not used: it is of another student."""
    seconds: float
    best_in: list[str]
    """The fields above in which no other run is better. Fields of the loss are compared only if all runs minimise the same loss;
    every field only with those of the same samples, a KL only with those on the same targets."""


def run_rows(runs: Sequence[Run], evaluation: Path | None = None) -> list[RunRow]:
    """One row per run: settings that differ, losses on validation, agreement, exact match, time.

    Args:
        runs: as `read_runs` reads them.
        evaluation: as `given` of `students_of`.
    """
    names = differing_settings(runs)
    rows = []
    left_out: dict[str, str] = {}
    students = students_of(runs, evaluation, left_out)
    sources, questions = targets_of(runs), questions_of(students)
    for run, student, source, asked in zip(runs, students, sources, questions, strict=True):
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
                targets_of=source,
                teacher=teacher_of(run),
                validated_on=run.validation,
                exact_match=None if student is None else exact_match(student),
                evaluation_kl=None if student is None else evaluated_kl(student),
                evaluated_on=None if student is None else student.distance_targets,
                evaluated_targets="" if student is None else student.distance_digest or "",
                evaluated_samples=asked,
                evaluation_left_out=left_out.get(run.name),
                seconds=sum(row.get("seconds", 0.0) for row in run.history.epochs),
                best_in=[],
            )
        )
    of_one_loss = one_loss(runs)
    for field, sign in _BETTER.items():
        if of_one_loss or field not in _OF_THE_LOSS:
            for same in comparable(rows, field, _CONDITIONS):
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


def comparable(rows: Sequence[Row], field: str, conditions: dict[str, tuple[str, ...]]) -> list[list[Row]]:
    """The rows in lists, within which the figures of a field can be compared; rows with an unknown condition are left out.

    Args:
        rows: rows of runs or groups.
        field: the figure's field.
        conditions: for each field, the fields that say on what it was measured: samples, targets, teacher.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in conditions[field]), []).append(row)
    return [same for values, same in found.items() if None not in values]


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
KL, CE = ("validated_on", "measured_on", "targets_of"), ("validated_on",)
AGREEMENT = ("validated_on", "teacher")
EVALUATED_KL, EXACT_MATCH = ("evaluated_samples", "evaluated_on", "evaluated_targets"), ("evaluated_samples",)
"""What figures must have in common to be compared: fields of rows of runs and groups."""
_CONDITIONS = {
    **dict.fromkeys(("best_validation_loss", "validation_loss", "validation_kd", "validation_kl"), KL),
    "validation_ce": CE,
    "validation_agreement": AGREEMENT,
    "exact_match": EXACT_MATCH,
    "evaluation_kl": EVALUATED_KL,
}
