"""The directories of runs, read and checked: what each was begun with, how far it got.

runs = read_runs(find_runs([Path("runs/hard"), Path("runs/sweep")]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstsight.errors import DataError
from firstsight.recipe import LossSection
from firstsight.secrets import masked
from phase2_student.runs.files import read_json
from phase2_student.runs.history import History, read_history
from phase2_student.runs.run_directory import RUN

NAMES = ("teacher", "teacher-bf16", "base", "student", "student-int8", "student-nf4")
"""What the models of a recipe are called in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, as its directory tells it."""

    name: str
    """Its directory's, with as many of those above as `read_runs` needs."""
    directory: Path
    recipe: dict[str, Any]
    """Defaults included; paths as in the recipe of the run."""
    facts: dict[str, Any]
    """`run.json`."""
    history: History

    @property
    def identity(self) -> dict[str, Any]:
        """What its weights depend on, by dotted names."""
        found: dict[str, Any] = self.facts["identity"]
        return found

    @property
    def finished(self) -> bool:
        """Whether it reached its last step."""
        return (self.directory / "final").is_dir()

    @property
    def best_validation_loss(self) -> float | None:
        """The lowest finite one, wherever in an epoch it was; None where there is none."""
        return self.history.best_validation_loss

    def setting(self, dotted: str) -> Any:
        """A value that the run was begun with, defaults of the recipe included; None where there is none.

        The identity leaves out keys that are younger than the oldest runs where they have their default.
        """
        if dotted in self.identity:
            return self.identity[dotted]
        section, _, name = dotted.partition(".")
        found = self.key(dotted)
        if found is None and section == "loss" and name in LossSection.model_fields:
            return LossSection.model_fields[name].default
        return found

    def key(self, dotted: str) -> Any:
        """A value of the recipe by its dotted name; None where there is none."""
        section, _, name = dotted.partition(".")
        return self.recipe.get(section, {}).get(name)


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
        known = {path.resolve() for path in found}
        found += [path for path in here if path.resolve() not in known]
    return found


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read the directories of runs, all different ones.

    A run is called by its directory; by as many of the directories above as it takes where two would be called alike, or
    one like another model of an evaluation.

    Raises:
        DataError: a directory that holds no run, or a file in it that cannot be read.
    """
    runs = []
    for directory, name in zip(directories, _names(directories), strict=True):
        path = directory / RUN
        if not path.is_file():
            raise DataError(f"{directory}: no {RUN} is there; give the training.output_dir of fs-student train")
        facts = read_json(path, dict)
        if not isinstance(facts.get("identity"), dict):
            raise DataError(f"{path}: does not say what the run was begun with; the file was damaged")
        runs.append(
            Run(
                name=name,
                directory=directory,
                recipe=_recipe(directory / "recipe.yaml"),
                facts=facts,
                history=read_history(directory),
            )
        )
    return runs


def _names(directories: Sequence[Path]) -> list[str]:
    parts = [directory.resolve().parts for directory in directories]
    names = []
    for mine in parts:
        length = 2 if mine[-1] in NAMES and mine[-1] != "student" else 1
        while length < len(mine) and [each[-length:] for each in parts].count(mine[-length:]) > 1:
            length += 1
        names.append("/".join(mine[-length:]))
    return names


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())[:160]}); train again or repair it") from None
    return masked(content) if isinstance(content, dict) else {}  # older recipes may hold a token
