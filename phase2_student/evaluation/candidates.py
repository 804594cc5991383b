"""The models of an evaluation: what they are called, where they are, how they are loaded, and what identifies their weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from firstsight.data.samples import file_digest
from firstsight.errors import ModelError
from firstsight.models import (
    default_device,
    load_quantized,
    load_student,
    load_teacher,
    resolve_directory,
    weights_digest,
)
from firstsight.quantization import stored_quantization
from firstsight.recipe import Recipe, StudentSection, TeacherSection
from phase2_student.release.export import check_current, export_directory
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
"""Keys of a model's section that leave its answers as they are: where its files are from, how it is trained or dumped."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to evaluate."""

    name: str
    role: Literal["teacher", "student"]
    directory: Path
    section: TeacherSection | StudentSection
    """How it is loaded."""

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as plain JSON: digests of its files, and how they are loaded."""
        small = sorted({path for pattern in _SMALL_FILES for path in self.directory.glob(pattern)})
        section = self.section.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        return {
            "role": self.role,
            "weights": weights_digest(self.directory),
            "files": {path.name: file_digest(path) for path in small},
            "section": section,
        }


def default_names(recipe: Recipe) -> list[str]:
    """`teacher`, `base`, `student`, and the exports that lie beside the student."""
    exported = [f"student-{kind}" for kind in ("int8", "nf4") if export_directory(recipe, kind).is_dir()]
    return ["teacher", "base", "student", *exported]


def parse_candidates(recipe: Recipe, names: Sequence[str]) -> list[Candidate]:
    """One of `runs.NAMES`, or `NAME=DIR` for a student, to directories; DIR is relative to the working directory.

    Raises:
        ModelError: a directory that is not there, a name that is not known or stands twice, an export of other weights.
    """
    candidates: list[Candidate] = []
    for text in names:
        name, equals, path = text.partition("=")
        if name in [candidate.name for candidate in candidates]:
            raise ModelError(f"--model {text}: the name {name!r} stands twice; give it another one: NAME=DIR")
        role: Literal["teacher", "student"] = "student"
        section: TeacherSection | StudentSection = recipe.student
        if equals:
            directory = Path(path)
        elif name in ("teacher", "teacher-bf16"):
            role, section = "teacher", recipe.teacher
            if name == "teacher-bf16":
                section = recipe.teacher.model_copy(update={"quantization": "none", "dtype": "bfloat16"})
            directory = resolve_directory(recipe, recipe.teacher)
        elif name == "base":
            directory = resolve_directory(recipe, recipe.student)
        elif name == "student":
            directory = recipe.output_dir / "best"
        elif name in ("student-int8", "student-nf4"):
            kind: Literal["int8", "nf4"] = "int8" if name == "student-int8" else "nf4"
            directory = export_directory(recipe, kind)
            if not directory.is_dir():
                raise ModelError(f"--model {text}: {directory} is not there; run fs-student export --{kind} first")
            check_current(directory, recipe.output_dir / "best")
        else:
            raise ModelError(f"--model {text}: expected {', '.join(NAMES)} or NAME=DIR")
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"--model {text}: {directory} has no config.json; train the student first, or give its directory"
            )
        candidates.append(Candidate(name=name, role=role, directory=directory, section=section))
    return candidates


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory."""

    model: Any
    seconds: float
    """From its files to the device."""
    dtype: str
    """`int8`, `nf4`, or the type of the weights."""


def load(candidate: Candidate) -> Loaded:
    """The candidate in memory, in eval mode."""
    begin = time.perf_counter()
    if isinstance(candidate.section, TeacherSection):
        section = candidate.section
        model = load_teacher(candidate.directory, section)
        dtype = str(section.dtype if section.quantization == "none" else section.quantization)
    else:
        model, dtype = load_for_answers(candidate.directory, candidate.section)
    return Loaded(model=model, seconds=time.perf_counter() - begin, dtype=dtype)


def load_for_answers(directory: Path, section: StudentSection) -> tuple[Any, str]:
    """A student on the default device in eval mode, and the type of its weights."""
    dtype = stored_quantization(directory)
    if dtype is not None:
        model = load_quantized(directory, section)
    else:
        device = default_device()
        # bf16 is slower than fp32 on most CPUs
        dtype = str(section.dtype) if device.type == "cuda" else "float32"
        model = load_student(directory, section, dtype=getattr(torch, dtype)).to(device)
    model.eval()
    return model, dtype
