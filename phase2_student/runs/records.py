"""The directories of runs, read and checked: the settings of each, and how far it is.

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
from phase2_student.runs.run_directory import BOUND, RUN, VALIDATION

NAMES = ("teacher", "teacher-bf16", "base", "student", "student-int8", "student-nf4")
"""The names of a recipe's models in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, read from its directory."""

    name: str
    """The name of its directory, with as many parent directories as `read_runs` needs."""
    directory: Path
    recipe: dict[str, Any]
    """The recipe with its defaults; paths as in the recipe of the run."""
    facts: dict[str, Any]
    """The content of `run.json`."""
    history: History
    validation: str
    """Which samples its validations are of, as far as all runs that are read together recorded it: their digest, else their number;
    "": neither.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """What its weights depend on, by dotted names."""
        found: dict[str, Any] = self.facts["identity"]
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Its identity and its validation samples: what runs differ in, by dotted names."""
        return {**self.identity, "validation samples": self.validation}

    @property
    def finished(self) -> bool:
        """Whether it reached its last step."""
        return (self.directory / "final").is_dir()

    @property
    def samples_seen(self) -> int | None:
        """Number of training samples that its steps showed the student, repetitions included; None if it is not known."""
        samples, batch, epochs = self.facts.get("train_samples"), self.identity.get("global batch"), self.history.epochs
        if not samples or not epochs:
            return None
        if not batch:
            return int(samples * epochs[-1]["epoch"])  # an older run, which counted whole epochs
        whole, rest = divmod(self.history.last_step, -(-samples // batch))
        return int(whole * samples + min(samples, rest * batch))

    @property
    def epochs_seen(self) -> float | None:
        """The same in epochs."""
        seen = self.samples_seen
        return None if seen is None else round(seen / self.facts["train_samples"], 3)

    @property
    def max_steps(self) -> int | None:
        """The `training.max_steps` that took the place of epochs; None if none did."""
        steps = self.key("training.max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def best_validation_loss(self) -> float | None:
        """The lowest finite validation loss, at any step; None if there is none."""
        return self.history.best_validation_loss

    def setting(self, dotted: str) -> Any:
        """A setting of the run, defaults of the recipe included; None if it has none.

        The identity leaves out keys that older versions did not have, if they have their defaults.
        """
        if dotted in self.settings:
            return self.settings[dotted]
        section, _, name = dotted.partition(".")
        found = self.key(dotted)
        if found is None and section == "loss" and name in LossSection.model_fields:
            return LossSection.model_fields[name].default
        return found

    def key(self, dotted: str) -> Any:
        """A value of the recipe by its dotted name; None if there is none."""
        section, _, name = dotted.partition(".")
        return self.recipe.get(section, {}).get(name)


def find_runs(directories: Sequence[Path]) -> list[Path]:
    """Directories of runs. A directory that is no run is replaced by the runs directly below it.

    Raises:
        DataError: no run was found.
    """
    found: list[Path] = []
    for directory in directories:
        here = [directory] if (directory / RUN).is_file() else sorted(p.parent for p in directory.glob(f"*/{RUN}"))
        if not here:
            raise DataError(f"{directory}: no {RUN} was found in it or directly below it; pass the directory of a run")
        known = {path.resolve() for path in found}
        found += [path for path in here if path.resolve() not in known]
    return found


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read the directories of runs, which must all be different.

    A run has the name of its directory. If two names would be equal, or one would be that of another model of an evaluation,
    as many parent directories are added as needed.

    Raises:
        DataError: a directory holds no run, or a file in it cannot be read.
    """
    read = []
    for directory in directories:
        path = directory / RUN
        if not path.is_file():
            raise DataError(f"{directory}: no {RUN} was found; pass the training.output_dir of fs-student train")
        facts = read_json(path, dict)
        if not isinstance(facts.get("identity"), dict):
            raise DataError(f"{path}: the settings of the run are missing; the file is damaged")
        read.append(facts)
    digests = [facts.get(BOUND, {}).get(VALIDATION) for facts in read]
    counts = [facts.get("validation_samples", "") for facts in read]
    validations = map(str, digests if all(digests) else counts)
    return [
        Run(
            name=name,
            directory=directory,
            recipe=_recipe(directory / "recipe.yaml"),
            facts=facts,
            history=read_history(directory),
            validation=validation,
        )
        for directory, name, facts, validation in zip(directories, _names(directories), read, validations, strict=True)
    ]


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
        raise DataError(
            f"{path}: not valid YAML ({' '.join(str(error).split())[:160]}); repair it or train again"
        ) from None
    return masked(content) if isinstance(content, dict) else {}  # older recipes may contain a token
