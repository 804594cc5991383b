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


def read_evaluation(runs: Sequence[Run], given: Path | None = None) -> Evaluation | None:
    """The evaluation of these runs, or None if there is none.

    Args:
        runs: the newest evaluations in their directories are merged. With several runs, a model called `student`, or an export
            of it, gets the name of its run. Of a model that was measured twice, the later measurement counts.
        given: an evaluation file, or a directory with evaluation files, to read instead of the runs' own.

    Raises:
        DataError: the file was not found or is not an evaluation, or the evaluations have different samples.
    """
    if given is not None:
        path = newest_evaluation(given) if given.is_dir() else given
        if path is None or not path.is_file():
            raise DataError(f"{given}: no evaluation found; fs-student eval writes evaluation_<timestamp>.json")
        return _read(path)
    found = []
    for run in runs:
        if path := newest_evaluation(run.directory / "evaluation"):
            evaluation = _read(path)
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
    """The student of a run among the models of an evaluation, found by name: the run's, `student`, or that of the run's directory.

    A model card compares the weights instead (`release/publish.py`); a report must be quick for many runs.
    """
    students = {model.name: model for model in models if model.role == "student"}
    own = run.directory.resolve().name
    names = (run.name, "student") if own in NAMES else (run.name, "student", own)
    return next((students[name] for name in names if name in students), None)


def _name_with_run(name: str, run: Run) -> str:
    """Puts the run's name in place of `student`, also in `student-int8`; other names stay."""
    return run.name + name.removeprefix("student") if name in NAMES and name.startswith("student") else name


def _joined(found: list[tuple[Evaluation, Path]]) -> Evaluation:
    found.sort(key=lambda pair: pair[0].created)
    newest, newest_path = found[-1]
    ids = newest.models[0].sample_ids
    models: dict[str, ModelResult] = {}
    goals: dict[tuple[str, str], Goal] = {}
    for evaluation, path in found:
        for model in evaluation.models:
            if model.sample_ids != ids:
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
        if model.sample_ids != first_model.sample_ids:
            raise DataError(
                f"{path}: {model.name} has other samples than {first_model.name}; run fs-student eval again"
            )
        if evaluation.settings.timed and not any(record.seconds for record in model.samples):
            raise DataError(
                f"{path}: {model.name} has no timed answer, so the file is damaged; run fs-student eval again"
            )
    return evaluation
