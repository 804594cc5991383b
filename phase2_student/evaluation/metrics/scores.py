"""Means of the per-sample records, over all samples, by category and by environment, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from phase2_student.evaluation.metrics.intervals import bootstrap_mean, wilson
from phase2_student.evaluation.results import AnswerRecord, GroupedScores, MetricScores, Score

METRICS: tuple[Literal["exact", "f1", "anls", "choice", "vqa"], ...] = ("exact", "f1", "anls", "choice", "vqa")
"""Fields of a record; `choice` is None where the question is no multiple choice, `vqa` where there are not several truths."""
SHARES = frozenset({"exact", "choice"})
"""Metrics that are right or wrong: their means are shares, with Wilson's interval, which holds for few samples and at 0 and 100 %."""
RESAMPLES = 2_000
"""Bootstrap resamples behind the interval of each other mean."""


def grouped_scores(records: Sequence[AnswerRecord]) -> GroupedScores:
    """Every metric over all records and over each group of them; records without a category or environment are in no such group."""
    groups: dict[str, dict[str, list[AnswerRecord]]] = {"category": {}, "environment": {}}
    for record in records:
        for kind, name in (("category", record.category), ("environment", record.environment)):
            if name is not None:
                groups[kind].setdefault(name, []).append(record)
    category, environment = (
        {name: metric_scores(group) for name, group in sorted(by_name.items())} for by_name in groups.values()
    )
    return GroupedScores(overall=metric_scores(records), category=category, environment=environment)


def metric_scores(records: Sequence[AnswerRecord]) -> MetricScores:
    """The mean of every metric; one that no record has is left out."""
    found: dict[str, Score | None] = {}
    for metric in METRICS:
        values = [float(value) for record in records if (value := getattr(record, metric)) is not None]
        if values:
            if metric in SHARES:
                mean, low, high = wilson(int(sum(values)), len(values))
            else:
                mean, low, high = bootstrap_mean(values, resamples=RESAMPLES)
            found[metric] = Score(mean=mean, low=low, high=high, n=len(values))
    return MetricScores(**{"exact": None, **found})


def kl_per_token(records: Sequence[AnswerRecord]) -> float | None:
    """Mean KL(teacher || student) per answer token in nats; None where no record has it."""
    return _per_position([(record.kl_sum, record.soft_positions) for record in records])


def nll_per_token(records: Sequence[AnswerRecord]) -> float | None:
    """Mean negative log-likelihood per token of the true answers in nats; None where no record has it."""
    return _per_position([(record.nll_sum, record.hard_positions) for record in records])


def agreement(records: Sequence[AnswerRecord]) -> float | None:
    """Share of answer positions at which the student's most likely token is the teacher's; None where no record has it."""
    return _per_position([(record.agree, record.soft_positions) for record in records])


def _per_position(sums: Sequence[tuple[float | None, int | None]]) -> float | None:
    """Sum over positions, of the records that have both."""
    known = [(value, count) for value, count in sums if value is not None and count is not None]
    positions = sum(count for _, count in known)
    return sum(value for value, _ in known) / positions if positions else None
