"""Models of an evaluation, loaded to answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from firstsight.models.loading import default_device, load_quantized, load_student, load_teacher
from firstsight.models.quantization import stored_quantization
from firstsight.recipe import StudentSection, TeacherSection
from phase2_student.evaluation.candidates import Candidate
from storage.wording import counted


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory."""

    model: Any
    seconds: float
    """Load time, from the files to the device."""
    dtype: str
    """`int8`, `nf4`, or the type of the weights."""


def load(candidate: Candidate) -> Loaded:
    """Load a candidate, in eval mode."""
    begin = time.perf_counter()
    if isinstance(candidate.section, TeacherSection):
        section = candidate.section
        model = load_teacher(candidate.directory, section)
        dtype = str(section.dtype if section.quantization == "none" else section.quantization)
    else:
        model, dtype = load_for_answers(candidate.directory, candidate.section)
    return Loaded(model=model, seconds=time.perf_counter() - begin, dtype=dtype)


def load_for_answers(directory: Path, section: StudentSection) -> tuple[Any, str]:
    """Load a student onto the default device in eval mode; returns it and the type of its weights."""
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


def device_name() -> str:
    """The GPU's name, or the number of threads of the CPU."""
    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    )
