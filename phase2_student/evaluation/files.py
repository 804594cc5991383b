"""Evaluation files: written by `fs-student eval`; found, checked and merged for the report, the card and the comparison.

evaluation = read_evaluation(runs, Path("demo/evaluation"))
student = student_of(evaluation.models, runs[-1])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from firstsight.errors import DataError
from phase2_student.evaluation.results import Evaluation, Goal, ModelResult
from phase2_student.evaluation.summary import details_text, summary_text
from phase2_student.runs.best import trained_student
from phase2_student.runs.files import read_json, write_json
from phase2_student.runs.records import NAMES, Run


def write_evaluation(evaluation: Evaluation, directory: Path | str) -> Path:
    """Write `evaluation_<timestamp>.json` and `evaluation_summary.txt`; returns the JSON's path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stamp = evaluation.created[:19].replace("-", "").replace(":", "")
    path = directory / f"evaluation_{stamp}.json"
    write_json(path, evaluation.to_json())
    text = f"{summary_text(evaluation)}\n\n{details_text(evaluation)}\n"
    (directory / "evaluation_summary.txt").write_text(text, encoding="utf-8")
    return path


def read_evaluation(
    runs: Sequence[Run], given: Path | None = None, *, left_out: dict[str, str] | None = None
) -> Evaluation | None:
    """The evaluation of these runs, or None if there is none.

    Args:
        runs: the newest evaluations in their directories are merged. With several runs, a model called `student`, or an export
            of it, gets the name of its run. Of a model that was measured twice, the later measurement counts.
        given: an evaluation file, or a directory with evaluation files, to read instead of the runs' own.
        left_out: gets the reason for each run, by name, whose student is not in the evaluation, although a model is called like
            it; an evaluation of the run's own is then left out. None: no weights are compared.

    Raises:
        DataError: the file was not found or is not an evaluation, or the evaluations have different samples.
    """
    if given is not None:
        path = newest_evaluation(given) if given.is_dir() else given
        if path is None or not path.is_file():
            raise DataError(f"{given}: no evaluation found; fs-student eval writes evaluation_<timestamp>.json")
        evaluation = _read(path)
        if left_out is not None:
            left_out.update({run.name: why for run in runs if (why := _misfit(evaluation, path, run))})
        return evaluation
    found = []
    for run in runs:
        if path := newest_evaluation(run.directory / "evaluation"):
            evaluation = _read(path)
            if left_out is not None and (why := _misfit(evaluation, path, run)):
                left_out[run.name] = why
                continue
            if len(runs) > 1:
                for part in evaluation.models:
                    part.name = _name_with_run(part.name, run)
                for goal in evaluation.goals:
                    goal.model = _name_with_run(goal.model, run)
            found.append((evaluation, path))
    return _joined(found) if found else None


def newest_evaluation(directory: Path) -> Path | None:
    """The newest `evaluation_<timestamp>.json` of a directory."""
    return max(directory.glob("evaluation_*.json"), default=None)


def student_of(models: Sequence[ModelResult], run: Run) -> ModelResult | None:
    """The student of a run among the models of an evaluation: the one with the weights of a student of the run.

    A model of an older file, which records no weights, and the student of a run without a student's directory are found by name:
    the run's, `student`, or that of the run's directory.
    """
    named, students = _named(models, run), [model for model in models if model.role == "student"]
    directories = _students(run)
    if not directories or not any(model.weights for model in students) or (named and named.weights is None):
        return named
    trained = _weights(directories[0])
    if named and any(_weights(directory) == named.weights for directory in directories):
        return named
    return next((model for model in students if model.weights == trained), None)


def _named(models: Sequence[ModelResult], run: Run) -> ModelResult | None:
    students = {model.name: model for model in models if model.role == "student"}
    own = run.directory.resolve().name
    names = (run.name, "student") if own in NAMES else (run.name, "student", own)
    return next((students[name] for name in names if name in students), None)


def _students(run: Run) -> list[Path]:
    """Directories of a run's students that are here: the trained one first, then the others and their exports."""
    trained = trained_student(run.directory)
    found = [trained, *sorted([*run.directory.glob("best*"), *run.directory.glob("final*")])]
    return [directory for directory in dict.fromkeys(found) if any(directory.glob("*.safetensors"))]


def _weights(directory: Path) -> str:
    from firstsight.models.loading import weights_digest  # not at the top: torch

    return weights_digest(directory)


def _misfit(evaluation: Evaluation, path: Path, run: Run) -> str:
    """Why a model that is called like a run's student is not it; empty if it is, or if there is none."""
    named = _named(evaluation.models, run)
    if named is None or student_of(evaluation.models, run) is not None:
        return ""
    return (
        f"{run.name}: not evaluated: in {path}, {named.name} has other weights than {trained_student(run.directory)}, as if it was "
        "evaluated before the training ended, or is another run's student; run fs-student eval again"
    )


def _name_with_run(name: str, run: Run) -> str:
    """Puts the run's name in place of `student`, also in `student-int8`; other names stay."""
    return run.name + name.removeprefix("student") if name in NAMES and name.startswith("student") else name


def _joined(found: list[tuple[Evaluation, Path]]) -> Evaluation:
    found.sort(key=lambda pair: pair[0].created)
    newest, newest_path = found[-1]
    models: dict[str, ModelResult] = {}
    goals: dict[tuple[str, str], Goal] = {}
    for evaluation, path in found:
        for model in evaluation.models:
            if not model.asked_as(newest.models[0]):
                raise DataError(
                    f"{path} and {newest_path} are evaluations of different samples, which cannot be compared; evaluate the models "
                    "with one fs-student eval --model NAME=DIR ..., and pass its file as --evaluation"
                )
            models[model.name] = model
        goals.update({(goal.name, goal.model): goal for goal in evaluation.goals})
    ranked = sorted(models, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    return newest.model_copy(update={"models": [models[name] for name in ranked], "goals": list(goals.values())})


def _read(path: Path) -> Evaluation:
    try:
        evaluation = Evaluation.model_validate(read_json(path, dict))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {place}: {first['msg'].lower()}; the file is damaged, or another version wrote it; run fs-student eval again"
        ) from None
    first_model = evaluation.models[0]
    for model in evaluation.models:
        if not model.asked_as(first_model):
            raise DataError(
                f"{path}: {model.name} has other samples than {first_model.name}; run fs-student eval again"
            )
        if evaluation.settings.timed and not any(record.seconds for record in model.samples):
            raise DataError(
                f"{path}: {model.name} has no timed answer, so the file is damaged; run fs-student eval again"
            )
    return evaluation
