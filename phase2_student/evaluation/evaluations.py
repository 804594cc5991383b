"""Evaluations that `fs-student eval` wrote: found, checked, put together, and the student of a run found in them.

evaluation = read_evaluation(runs, Path("demo/evaluation"))
student = student_of(evaluation["models"], runs[-1])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from firstsight.errors import DataError
from phase2_student.runs.records import NAMES, Run, read_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Record(_Part):
    id: str
    category: str | None
    environment: str | None
    question: str
    images: list[str]
    truth: str
    answer: str
    tokens: int
    exact: bool
    confidence: float | None
    empty: bool
    nonfinite: bool
    cut: bool
    seconds: float = 0.0
    kl_sum: float | None = None
    agree: int | None = None
    soft_positions: int | None = None

    @model_validator(mode="after")
    def _distance(self) -> Self:
        if (self.kl_sum, self.agree) != (None, None) and None in (self.agree, self.soft_positions):
            raise ValueError("kl_sum, agree and soft_positions belong together")
        return self


class _Score(_Part):
    mean: float
    low: float
    high: float


class _Scores(_Part):
    exact: _Score
    f1: _Score | None = None
    anls: _Score | None = None
    choice: _Score | None = None


class _Groups(_Part):
    overall: _Scores
    category: dict[str, _Scores]
    environment: dict[str, _Scores]


class _Throughput(_Part):
    best: float
    best_batch: int


class _Users(_Part):
    samples_per_second: float | None
    p50: float | None
    p95: float | None


class _Model(_Part):
    name: str
    role: str
    weights: str | None = None
    dtype: str
    parameters: int
    size_bytes: int
    load_seconds: float
    peak_memory_bytes: int | None
    throughput: _Throughput
    concurrency: dict[str, _Users]
    energy_joules_per_answer: float | None
    scores: _Groups
    samples: Annotated[list[_Record], Field(min_length=1)]


class _Target(_Part):
    name: str
    model: str
    against: str
    wanted: str
    got: float | None
    passed: bool | None


class _Data(_Part):
    file: str
    samples: int


class _Settings(_Part):
    device: str
    batch_size: int
    timed: int
    repetitions: int
    warm_up: int
    requests: int


class _Evaluation(_Part):
    created: str
    data: _Data
    settings: _Settings
    targets: list[_Target]
    models: Annotated[list[_Model], Field(min_length=1)]


def read_evaluation(runs: Sequence[Run], given: Path | None = None) -> dict[str, Any] | None:
    """The evaluation of these runs, or None.

    Args:
        runs: the newest evaluation in each of their directories is taken, and put together: what is called `student` there is
            called by its run where there are several, as are exports of it; a model that was measured twice counts as it was
            measured last.
        given: an evaluation file, or a directory with them; then that one alone.

    Raises:
        DataError: no such file, one that is no evaluation, or evaluations of different samples.
    """
    if given is not None:
        path = newest_evaluation(given) if given.is_dir() else given
        if path is None or not path.is_file():
            raise DataError(f"{given}: no evaluation is there; fs-student eval writes evaluation_<timestamp>.json")
        return _checked(path)
    found = []
    for run in runs:
        if path := newest_evaluation(run.directory / "evaluation"):
            evaluation = _checked(path)
            if len(runs) > 1:
                for part in evaluation["models"]:
                    part["name"] = _of_run(part["name"], run)
                for row in evaluation["targets"]:
                    row["model"] = _of_run(row["model"], run)
            found.append((evaluation, path))
    return _joined(found) if found else None


def newest_evaluation(directory: Path) -> Path | None:
    """The newest `evaluation_<timestamp>.json` of a directory."""
    return max(directory.glob("evaluation_*.json"), default=None)


def student_of(models: Sequence[dict[str, Any]], run: Run) -> dict[str, Any] | None:
    """The student of a run among the models of an evaluation, by its name: the run's, `student`, the run's directory's.

    A card goes by the weights instead (`publish.py`); a page must be quick over many runs.
    """
    students = {model["name"]: model for model in models if model["role"] == "student"}
    own = run.directory.resolve().name
    names = (run.name, "student") if own in NAMES else (run.name, "student", own)
    return next((students[name] for name in names if name in students), None)


def _of_run(name: str, run: Run) -> str:
    """`student` and `student-int8` of a run's own evaluation, beside those of other runs."""
    return run.name + name.removeprefix("student") if name in NAMES and name.startswith("student") else name


def _joined(found: list[tuple[dict[str, Any], Path]]) -> dict[str, Any]:
    found.sort(key=lambda pair: pair[0]["created"])
    newest, first_path = found[-1]
    ids = [record["id"] for record in newest["models"][0]["samples"]]
    models: dict[str, dict[str, Any]] = {}
    targets: dict[tuple[str, str], dict[str, Any]] = {}
    for evaluation, path in found:
        for model in evaluation["models"]:
            if [record["id"] for record in model["samples"]] != ids:
                raise DataError(
                    f"{path} and {first_path} are evaluations of different samples, which cannot be compared; evaluate the models "
                    "with one fs-student eval --model NAME=DIR ..., and give its file with --evaluation"
                )
            models[model["name"]] = model
        targets.update({(row["name"], row["model"]): row for row in evaluation["targets"]})
    ranked = sorted(models, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    return {**newest, "models": [models[name] for name in ranked], "targets": list(targets.values())}


def _checked(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, dict)
    try:
        _Evaluation.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {place}: {first['msg'].lower()}; the file was damaged, or another version wrote it: evaluate again"
        ) from None
    ids = [record["id"] for record in content["models"][0]["samples"]]
    for model in content["models"]:
        if [record["id"] for record in model["samples"]] != ids:
            raise DataError(
                f"{path}: {model['name']} has other samples than {content['models'][0]['name']}; evaluate again"
            )
        if not any(record.get("seconds") for record in model["samples"]):
            raise DataError(f"{path}: {model['name']} has no timed answer; the file was damaged: evaluate again")
    return content
