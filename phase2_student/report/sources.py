"""What a report is made from: the directories of runs, an evaluation and the cache, read and checked.

runs = read_runs([Path("runs/hard"), Path("runs/distilled")])
evaluation = read_evaluation(runs, Path("demo/evaluation"))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstsight.errors import DataError
from phase2_student.run_directory import RUN
from storage.errors import CacheError
from storage.reader import open_cache
from storage.status import CacheStatus, cache_status


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, as its directory tells it."""

    name: str
    """Of the directory."""
    directory: Path
    recipe: dict[str, Any]
    """Defaults included; paths as in the recipe of the run."""
    facts: dict[str, Any]
    """`run.json`."""
    history: list[dict[str, Any]]
    """Rows of `training_history.json`; empty before the first validation."""

    @property
    def seconds(self) -> float | None:
        """Of training, validation and saving; None where the history does not tell."""
        if not self.history or not all(row.get("seconds") for row in self.history):
            return None
        return float(sum(row["seconds"] for row in self.history))

    def key(self, dotted: str) -> Any:
        """A value of the recipe by its dotted name; None where there is none."""
        section, _, name = dotted.partition(".")
        return self.recipe.get(section, {}).get(name)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read the directories of runs; equal names are told apart by the directories above them.

    Raises:
        DataError: a directory that holds no run, or a file in it that cannot be read.
    """
    names = [directory.resolve().name for directory in directories]
    runs = []
    for directory, name in zip(directories, names, strict=True):
        path = directory / RUN
        if not path.is_file():
            raise DataError(f"{directory}: no {RUN} is there; give the training.output_dir of fs-student train")
        history = directory / "training_history.json"
        runs.append(
            Run(
                name=name if names.count(name) == 1 else "/".join(directory.resolve().parts[-2:]),
                directory=directory,
                recipe=_recipe(directory / "recipe.yaml"),
                facts=_json(path, dict),
                history=_json(history, list) if history.is_file() else [],
            )
        )
    return runs


def read_evaluation(runs: Sequence[Run], given: Path | None = None) -> dict[str, Any] | None:
    """The evaluation of these runs, or None.

    Args:
        runs: the newest evaluation in each of their directories is taken, and put together: what is called `student` there is
            called by its run where there are several; a model that was measured twice counts as it was measured last.
        given: an evaluation file, or a directory with them; then that one alone.

    Raises:
        DataError: no such file, or evaluations of different samples.
    """
    if given is not None:
        path = newest_evaluation(given) if given.is_dir() else given
        if path is None or not path.is_file():
            raise DataError(f"{given}: no evaluation is there; fs-student eval writes evaluation_<timestamp>.json")
        return _evaluation(path)
    found = []
    for run in runs:
        if path := newest_evaluation(run.directory / "evaluation"):
            evaluation = _evaluation(path)
            if len(runs) > 1:
                for part in (*evaluation["models"], *evaluation.get("targets", [])):
                    key = "name" if "samples" in part else "model"
                    if part.get(key) == "student":
                        part[key] = run.name
            found.append((evaluation, path))
    return _joined(found) if found else None


def newest_evaluation(directory: Path) -> Path | None:
    """The newest `evaluation_<timestamp>.json` of a directory."""
    return max(directory.glob("evaluation_*.json"), default=None)


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """The cache of the runs, as it is now."""

    status: CacheStatus
    digest: str

    @property
    def teacher(self) -> dict[str, Any]:
        """What the specification says of the teacher."""
        found: dict[str, Any] = self.status.spec.get("teacher", {})
        return found

    @property
    def seconds(self) -> float | None:
        """Of the workers that dumped it, without loading the teacher; None for a cache that does not tell."""
        return self.status.statistics.get("seconds")


def read_cache(runs: Sequence[Run]) -> tuple[CacheFacts | None, str]:
    """The cache that the runs name; or None, and why there is none."""
    locations = list(dict.fromkeys(str(run.facts["cache"]) for run in runs if run.facts.get("cache")))
    if not locations:
        return None, "The runs name no cache."
    try:
        return CacheFacts(status=cache_status(locations[-1]), digest=open_cache(locations[-1]).digest), ""
    except (CacheError, OSError) as error:
        return None, f"The cache could not be opened: {error}"


def pair_names(run: Run, cache: CacheFacts | None) -> tuple[str, str]:
    """Teacher and student: a hub id as it is, of a directory its last part."""
    teacher = (cache.teacher.get("model") if cache else None) or run.facts.get("teacher") or run.key("teacher.model")
    student = run.facts.get("student") or run.key("student.model")
    return without_directories(teacher or "teacher"), without_directories(student or "student")


def without_directories(value: Any) -> Any:
    """The last part of an absolute path; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value


def _joined(found: list[tuple[dict[str, Any], Path]]) -> dict[str, Any]:
    found.sort(key=lambda pair: str(pair[0].get("created")))
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
        targets.update({(row["name"], row["model"]): row for row in evaluation.get("targets", [])})
    order = ["teacher", "teacher-bf16", "base"]
    ranked = sorted(models, key=lambda name: order.index(name) if name in order else len(order))
    return {**newest, "models": [models[name] for name in ranked], "targets": list(targets.values())}


def _evaluation(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _json(path, dict)
    if not content.get("models") or not all(model.get("samples") for model in content["models"]):
        raise DataError(f"{path}: no models with samples in it; fs-student eval writes such files")
    return content


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())[:160]}); train again or repair it") from None
    return content if isinstance(content, dict) else {}


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); the file was damaged") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, got {type(content).__name__}")
    return content
