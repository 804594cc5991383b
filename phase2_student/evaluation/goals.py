"""The goals of the original work, as pass or fail: a student against the teacher, both measured here."""

from __future__ import annotations

from collections.abc import Sequence

from phase2_student.evaluation.results import Goal, ModelResult

COMPRESSION = 3.0
"""Least ratio of the teacher's parameters to the student's."""
MEMORY = 0.30
"""Least share of the teacher's peak memory that the student saves."""
SPEED = 3.0
"""Least ratio of answers per second at batch 1, student to teacher."""


def check_goals(models: Sequence[ModelResult]) -> list[Goal]:
    """Three goals per student, against the first teacher; none if no teacher was measured."""
    teacher = next((model for model in models if model.role == "teacher"), None)
    if teacher is None:
        return []
    return [
        Goal(
            name=name,
            model=student.name,
            against=teacher.name,
            wanted=wanted,
            got=got,
            passed=None if got is None else got >= least,
        )
        for student in models
        if student.role == "student"
        for name, (wanted, least, got) in _reached(student, teacher).items()
    ]


def _reached(student: ModelResult, teacher: ModelResult) -> dict[str, tuple[str, float, float | None]]:
    """For each goal: the goal in words, the least value, and the value reached."""
    mine, theirs = student.peak_memory_bytes, teacher.peak_memory_bytes
    saved = None if mine is None or not theirs else 1 - mine / theirs
    fast, slow = student.throughput, teacher.throughput
    faster = None if fast is None or slow is None else fast.rates[1] / slow.rates[1]
    return {
        "compression": (f">= {COMPRESSION:g} x", COMPRESSION, teacher.parameters / student.parameters),
        "memory": (f"-{MEMORY:.0%}", MEMORY, saved),
        "speed": (f">= {SPEED:g} x", SPEED, faster),
    }
