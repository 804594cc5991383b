"""Means of the per-sample records, over all samples, by category and by environment, each with its 95 % bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phase2_student.evaluation.bootstrap import bootstrap_mean

METRICS = ("exact", "f1", "anls", "choice")
"""Keys of a record; `choice` is null where the question is no multiple choice."""
RESAMPLES = 2_000
"""Behind the interval of each mean."""


def score_groups(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every metric over all records and over each group of them.

    Returns:
        `{"overall": scores, "category": {name: scores}, "environment": {name: scores}}`, where scores are
        `{metric: {"mean", "low", "high", "n"}}`; records without a category or an environment are in no such group.
    """
    groups: dict[str, Any] = {"overall": scores(records)}
    for key in ("category", "environment"):
        names = sorted({str(record[key]) for record in records if record[key] is not None})
        groups[key] = {name: scores([r for r in records if str(r[key]) == name]) for name in names}
    return groups


def scores(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """`{metric: {"mean", "low", "high", "n"}}`; a metric that no record has is left out."""
    found = {}
    for metric in METRICS:
        values = [float(record[metric]) for record in records if record[metric] is not None]
        if values:
            mean, low, high = bootstrap_mean(values, resamples=RESAMPLES)
            found[metric] = {"mean": mean, "low": low, "high": high, "n": len(values)}
    return found


def kl_per_token(records: Sequence[dict[str, Any]]) -> float | None:
    """Mean KL(teacher || student) per answer token in nats; None where it is known of no sample."""
    return _per_position(records, "kl_sum")


def agreement(records: Sequence[dict[str, Any]]) -> float | None:
    """Share of answer positions at which the student's most likely token is the teacher's; None where it is not known."""
    return _per_position(records, "agree")


def _per_position(records: Sequence[dict[str, Any]], key: str) -> float | None:
    known = [record for record in records if record.get(key) is not None]
    positions = sum(record["soft_positions"] for record in known)
    return sum(record[key] for record in known) / positions if positions else None
