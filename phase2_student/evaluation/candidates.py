"""The models of an evaluation: their names, where they are, how to load them, and what identifies their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstsight.data.images import file_digest
from firstsight.errors import ModelError
from firstsight.identity import with_turns_of_cache
from firstsight.models.loading import resolve_directory, weights_digest
from firstsight.models.quantization import check_stored
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import DataSection, Recipe, StudentSection, TeacherSection
from phase2_student.evaluation.results import Role
from phase2_student.runs.best import trained_student
from phase2_student.runs.exports import check_export, export_directory
from phase2_student.runs.preprocessing import read_preprocessing
from phase2_student.runs.records import NAMES

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_WITHOUT_EFFECT = {
    "model",
    "revision",
    "trust_remote_code",
    "precision",
    "freeze",
    "lora",
    "padding_free",
    "batch_tokens",
}
"""Keys of a model's section that do not change its answers: where its files come from, how it is trained or dumped with."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to evaluate."""

    name: str
    role: Role
    directory: Path
    section: TeacherSection | StudentSection
    """How to load it."""
    data: DataSection
    """Gives the system prompt and the maximum length of a sample."""
    trained_turns: str | None
    """Which answers of a conversation its run trained on; None if that is not known."""
    origin: Literal["run", "recipe"]
    """Where `max_pixels` and the system prompt come from: its own run, or the recipe if its directory records none."""

    def prompter(self) -> Prompter:
        """Its prompter, which turns samples into its inputs."""
        return load_prompter(self.directory, self.section, self.data)

    def identity(self) -> dict[str, object]:
        """What its answers depend on, as plain JSON: digests of its files, and the settings for loading them."""
        small = sorted({path for pattern in _SMALL_FILES for path in self.directory.glob(pattern)})
        section = self.section.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        return {
            "role": self.role,
            "weights": weights_digest(self.directory),
            "files": {path.name: file_digest(path) for path in small},
            "section": section,
            "system_prompt": self.data.system_prompt,
        }


def default_names(recipe: Recipe) -> list[str]:
    """`teacher`, `base`, `student`, and the student's exports that exist."""
    exported = [f"student-{kind}" for kind in ("int8", "nf4") if export_directory(recipe, kind).is_dir()]
    return ["teacher", "base", "student", *exported]


def _name_and_directory(text: str) -> tuple[str, Path | None]:
    """What `NAME=DIR` says, also where the name of a sweep's run has signs of equality itself; a name alone has no directory."""
    parts = text.split("=")
    for count in range(1, len(parts)):
        if (directory := Path("=".join(parts[count:]))).is_dir():
            return "=".join(parts[:count]), directory
    return parts[0], Path("=".join(parts[1:])) if len(parts) > 1 else None


def parse_candidates(recipe: Recipe, names: Sequence[str]) -> list[Candidate]:
    """The named models: each a name of `runs.NAMES`, or `NAME=DIR` for a student, with DIR relative to the working directory.

    If a student's directory records the preprocessing of its run, that is used, else the recipe's.

    Raises:
        ModelError: a directory was not found, a name is unknown or is given twice, or an export is of other weights.
    """
    candidates: list[Candidate] = []
    recipe = with_turns_of_cache(recipe)
    for text in names:
        name, path = _name_and_directory(text)
        if name in [candidate.name for candidate in candidates]:
            raise ModelError(
                f"--model {text}: the name {name!r} is given twice; give one of them another name: NAME=DIR"
            )
        role: Role = "student"
        section: TeacherSection | StudentSection = recipe.student
        if path is not None:
            directory = path
        elif name in ("teacher", "teacher-bf16"):
            role, section = "teacher", recipe.teacher
            if name == "teacher-bf16":
                section = recipe.teacher.model_copy(update={"quantization": "none", "dtype": "bfloat16"})
            directory = resolve_directory(recipe, recipe.teacher)
            check_stored(directory, section)
        elif name == "base":
            directory = resolve_directory(recipe, recipe.student)
        elif name == "student":
            directory = trained_student(recipe.output_dir)
        elif name in ("student-int8", "student-nf4"):
            kind: Literal["int8", "nf4"] = "int8" if name == "student-int8" else "nf4"
            directory = export_directory(recipe, kind)
            if not directory.is_dir():
                raise ModelError(f"--model {text}: {directory} was not found; run fs-student export --{kind} first")
            check_export(directory, trained_student(recipe.output_dir))
        else:
            raise ModelError(f"--model {text}: expected {', '.join(NAMES)} or NAME=DIR")
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"--model {text}: {directory} has no config.json; train the student first, or pass its directory"
            )
        own = read_preprocessing(directory) if isinstance(section, StudentSection) else None
        data = recipe.data
        if own is not None and isinstance(section, StudentSection):
            section, data = own.applied(section, data)
        candidates.append(
            Candidate(
                name=name,
                role=role,
                directory=directory,
                section=section,
                data=data,
                trained_turns=None if own is None else own.turns,
                origin="recipe" if own is None else "run",
            )
        )
    return candidates
