"""What the original work set out to reach, as pass or fail: a student against the teacher, both measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COMPRESSION = 3.0
"""Parameters of the teacher over those of the student, at least."""
MEMORY = 0.30
"""Share of the teacher's peak memory that the student saves, at least."""
SPEED = 3.0
"""Answers per second at batch 1, student over teacher, at least."""


def targets(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three rows per student, against the first teacher; none where no teacher was measured.

    Returns:
        `{"name", "model", "against", "wanted", "got", "passed"}`; got and passed are None where a measurement is missing.
    """
    teacher = next((model for model in models if model["role"] == "teacher"), None)
    if teacher is None:
        return []
    rows = []
    for model in models:
        if model["role"] == "student":
            for name, (wanted, least, got) in _reached(model, teacher).items():
                passed = None if got is None else got >= least
                row = {"name": name, "model": model["name"], "against": teacher["name"]}
                rows.append({**row, "wanted": wanted, "got": got, "passed": passed})
    return rows


def _reached(student: dict[str, Any], teacher: dict[str, Any]) -> dict[str, tuple[str, float, float | None]]:
    memories = student["peak_memory_bytes"], teacher["peak_memory_bytes"]
    saved = None if None in memories or not memories[1] else 1 - memories[0] / memories[1]
    return {
        "compression": (f">= {COMPRESSION:g} x", COMPRESSION, teacher["parameters"] / student["parameters"]),
        "memory": (f"-{MEMORY:.0%}", MEMORY, saved),
        "speed": (f">= {SPEED:g} x", SPEED, student["throughput"]["1"] / teacher["throughput"]["1"]),
    }
