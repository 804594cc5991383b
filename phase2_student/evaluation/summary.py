"""An evaluation as text: everything shown is computed from its per-sample records and its timed runs."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phase2_student.evaluation.metrics.intervals import paired_bootstrap
from phase2_student.evaluation.metrics.scores import agreement, kl_per_token, nll_per_token
from phase2_student.evaluation.results import (
    Concurrency,
    Evaluation,
    EvaluationSettings,
    InputSettings,
    ModelResult,
    Score,
)
from storage.wording import counted

_METRICS = {
    "exact": "exact match",
    "f1": "token F1",
    "anls": "ANLS",
    "choice": "multiple choice",
    "vqa": "VQA accuracy",
}
_GOALS = {"compression": "compression", "memory": "peak memory", "speed": "speed"}
_SHOWN = 5
"""Number of skipped samples that are named."""
_GROUPS: tuple[Literal["category", "environment"], ...] = ("category", "environment")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one model; None if a figure is not known."""

    parameters: int
    size_mb: float
    load_seconds: float
    peak_memory_mb: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    tokens_per_second: float | None
    samples_per_second: float | None
    best_samples_per_second: float | None
    best_batch: int | None
    joules: float | None
    answer_tokens: float
    confidence: float | None
    empty: int
    nonfinite: int
    cut: int
    undecided: int | None
    nll: float | None
    kl: float | None
    agreement: float | None


def model_figures(model: ModelResult) -> Figures:
    """The figures of a model, from its records and measurements."""
    records = model.samples
    timed = [(record.tokens, record.seconds) for record in records if record.seconds is not None]
    seconds = [duration for _, duration in timed]
    sure = [record.confidence for record in records if record.confidence is not None]
    p50, p95 = (1e3 * np.percentile(seconds, [50, 95])).tolist() if seconds else (None, None)
    best = model.throughput
    return Figures(
        parameters=model.parameters,
        size_mb=model.size_bytes / 1e6,
        load_seconds=model.load_seconds,
        peak_memory_mb=None if model.peak_memory_bytes is None else model.peak_memory_bytes / 1e6,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        tokens_per_second=sum(tokens for tokens, _ in timed) / sum(seconds) if seconds else None,
        samples_per_second=len(seconds) / sum(seconds) if seconds else None,
        best_samples_per_second=None if best is None else best.best,
        best_batch=None if best is None else best.best_batch,
        joules=model.energy_joules_per_answer,
        answer_tokens=statistics.fmean(record.tokens for record in records),
        confidence=statistics.fmean(sure) if sure else None,
        empty=sum(record.empty for record in records),
        nonfinite=sum(record.nonfinite for record in records),
        cut=sum(record.cut for record in records),
        undecided=sum(bool(record.undecided) for record in records)
        if any(record.undecided is not None for record in records)
        else None,
        nll=nll_per_token(records),
        kl=kl_per_token(records),
        agreement=agreement(records),
    )


_ROWS = {
    "parameters": ("parameters", "{:,.0f}"),
    "size_mb": ("weights on disk, MB", "{:,.1f}"),
    "load_seconds": ("load time, s", "{:,.2f}"),
    "peak_memory_mb": ("peak memory above idle, MB", "{:,.0f}"),
    "latency_p50_ms": ("latency p50, ms", "{:,.1f}"),
    "latency_p95_ms": ("latency p95, ms", "{:,.1f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "samples_per_second": ("samples/s", "{:,.2f}"),
    "best_samples_per_second": ("samples/s at the best batch", "{:,.2f}"),
    "best_batch": ("best batch", "{:.0f}"),
    "joules": ("energy per answer, J", "{:,.2f}"),
    "answer_tokens": ("mean answer tokens", "{:,.1f}"),
    "confidence": ("mean confidence", "{:.3f}"),
    "empty": ("empty answers", "{:.0f}"),
    "nonfinite": ("answers with NaN", "{:.0f}"),
    "cut": ("answers cut", "{:.0f}"),
    "undecided": ("choices undecided", "{:.0f}"),
    "nll": ("NLL of the true answers, nats/token", "{:.4f}"),
    "kl": ("KL to the teacher, nats/token", "{:.4f}"),
    "agreement": ("agreement with the teacher", "{:.1%}"),
}
_ALWAYS = ("peak_memory_mb", "confidence", "kl", "agreement")
"""Rows shown even if no model has the figure: without them a reader would ask whether it was measured."""


def summary_text(evaluation: Evaluation) -> str:
    """The evaluation as text: the table, notes on how it was measured, and the paired differences between columns."""
    lines = [*_aligned(summary_table(evaluation)), "", *_notes(evaluation), *difference_lines(evaluation.models)]
    return "\n".join(lines)


def summary_table(evaluation: Evaluation) -> list[list[str]]:
    """The header, then a row per figure: its label, then one cell per model."""
    models = evaluation.models
    figures = [model_figures(model) for model in models]
    table = [["", *(f"{model.name} ({model.dtype})" for model in models)]]
    for name, (label, form) in _ROWS.items():
        values = [getattr(each, name) for each in figures]
        if name in _ALWAYS or any(value is not None for value in values):
            table.append([label, *("-" if value is None else form.format(value) for value in values)])
    table += _users_lines(models) + _goal_lines(evaluation)
    table += [_score_line(models, label, metric) for metric, label in _METRICS.items() if _has(models, metric)]
    return table + _group_lines(models, "exact")


def details_text(evaluation: Evaluation) -> str:
    """All metrics except exact match by category and environment, in the form in which `summary_text` shows exact match."""
    models = evaluation.models
    parts = []
    for metric, label in _METRICS.items():
        if metric != "exact" and _has(models, metric):
            table = [[label, *(model.name for model in models)], _score_line(models, "all", metric)]
            parts.append("\n".join(_aligned(table + _group_lines(models, metric))))
    return "\n\n".join(parts)


def difference_lines(models: Sequence[ModelResult]) -> list[str]:
    """Paired differences with their 95% intervals; none without true answers.

    In exact match: each model minus the one before it, then the last minus the others. In the NLL of the true answers: the last
    minus the others.
    """
    lines = []
    pairs = [*itertools.pairwise(models), *((other, models[-1]) for other in reversed(models[:-2]))]
    for before, model in pairs:
        difference = exact_difference(model, before)
        if difference is None:
            continue
        mean, low, high = difference
        lines.append(
            f"{model.name} - {before.name}: {100 * mean:+.1f} points exact match, 95% interval "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] (paired bootstrap)"
        )
    for other in reversed(models[:-1]):
        difference = nll_difference(models[-1], other)
        if difference is not None:
            mean, low, high = difference
            lines.append(
                f"{models[-1].name} - {other.name}: {mean:+.4f} nats per token of the true answers, 95% interval "
                f"[{low:+.4f}, {high:+.4f}] (paired bootstrap)"
            )
    return lines


def exact_difference(model: ModelResult, other: ModelResult) -> tuple[float, float, float] | None:
    """How much higher a model's share of exact answers is than another's, with its 95% interval.

    Both are taken over the same samples, those with a true answer; None if there are none.
    """
    pairs = [(mine.exact, theirs.exact) for mine, theirs in zip(model.samples, other.samples, strict=True)]
    known = [(float(mine), float(theirs)) for mine, theirs in pairs if mine is not None and theirs is not None]
    return paired_bootstrap(*zip(*known, strict=True)) if known else None


def nll_difference(model: ModelResult, other: ModelResult) -> tuple[float, float, float] | None:
    """How much higher a model's NLL per token of the true answers is than another's, as the mean over the samples, and its 95%
    interval; None if no sample has it for both.
    """
    known = [
        (mine.nll_sum / mine.hard_positions, theirs.nll_sum / mine.hard_positions)
        for mine, theirs in zip(model.samples, other.samples, strict=True)
        if mine.nll_sum is not None and theirs.nll_sum is not None and mine.hard_positions
    ]
    return paired_bootstrap(*zip(*known, strict=True)) if known else None


def sample_lines(evaluation: Evaluation) -> list[str]:
    """Notes about the samples: how many have no true answer, were skipped, or have no distance to the teacher."""
    data, lines = evaluation.data, list[str]()
    if data.rows is not None and data.rows < data.samples:
        lines.append(
            f"{counted(data.samples, 'answer')} of {counted(data.rows, 'row')}: each is asked for separately, with the true answers "
            "before it as history."
        )
    if data.answered == 0:
        lines.append("No sample has a true answer: there is no exact match or other score.")
    elif data.answered is not None and data.answered < data.samples:
        lines.append(f"Scores over {counted(data.answered, 'sample')} of {data.samples:,} with a true answer.")
    if data.skipped:
        lines.append(
            f"{counted(len(data.skipped), 'sample was', 'samples were')} skipped (cache.on_error: skip): {'; '.join(data.skipped[:_SHOWN])}"
            f"{'; ...' if len(data.skipped) > _SHOWN else ''}"
        )
    for model in evaluation.models:
        known = sum(record.soft_positions is not None for record in model.samples)
        if 0 < known < len(model.samples):
            lines.append(
                f"{model.name}: KL and agreement over {known:,} of {len(model.samples):,} samples; the cache has no targets for the "
                "others, or none that fit."
            )
    return lines


def preprocessing_lines(models: Sequence[ModelResult]) -> list[str]:
    """Where each model's image size and system prompt come from, and whether they differ; none for older evaluations."""
    known = [(model.name, model.preprocessing) for model in models if model.preprocessing is not None]
    if not known:
        return []
    origins = {"run": "from its own run", "recipe": "from the recipe, since its directory records none"}
    parts = [
        f"{', '.join(names)} {words}"
        for origin, words in origins.items()
        if (names := [name for name, settings in known if settings.origin == origin])
    ]
    lines = [f"Image size and system prompt: {'; '.join(parts)}."]
    fields: dict[str, Callable[[InputSettings], str]] = {
        "max_pixels": lambda each: "the processor's own" if each.max_pixels is None else f"{each.max_pixels:,}",
        "system prompt": lambda each: (
            "the template's default"
            if each.system_prompt is None
            else json.dumps(each.system_prompt, ensure_ascii=False)
        ),
        "chat template": lambda each: each.chat_template[:12],
    }
    if all(settings.turns for _, settings in known):
        fields["turns"] = lambda each: str(each.turns)
    for label, shown in fields.items():
        if len({shown(settings) for _, settings in known}) > 1:
            lines.append(
                f"They differ in {label}: {', '.join(f'{name} {shown(settings)}' for name, settings in known)}."
            )
    return lines


def _counts_line(models: Sequence[ModelResult]) -> list[str]:
    """How many samples of each category and environment have a true answer."""
    parts = []
    for kind in _GROUPS:
        found = {name: scores.exact for name, scores in models[0].scores.by(kind).items()}
        counts = ", ".join(f"{name} {score.n:,}" for name, score in found.items() if score is not None and score.n)
        parts += [f"by {kind}: {counts}"] if counts else []
    return [f"Samples {'; '.join(parts)}."] if parts else []


def _users_lines(models: Sequence[ModelResult]) -> list[list[str]]:
    def cell(seen: Concurrency | None) -> str:
        if seen is None or seen.samples_per_second is None or seen.p50 is None or seen.p95 is None:
            return "-"
        return f"{seen.samples_per_second:,.2f} ({1e3 * seen.p50:,.0f}, {1e3 * seen.p95:,.0f})"

    numbers = list(dict.fromkeys(number for model in models for number in model.concurrency))
    return [
        [f"samples/s (p50, p95 in ms), {number} user{'s' if number != '1' else ''}"]
        + [cell(model.concurrency.get(number)) for model in models]
        for number in numbers
    ]


def _goal_lines(evaluation: Evaluation) -> list[list[str]]:
    lines = []
    for name, label in _GOALS.items():
        by_model = {goal.model: goal for goal in evaluation.goals if goal.name == name}
        if not by_model:
            continue
        show: Callable[[float], str] = (
            (lambda got: f"{-got:+.0%}") if name == "memory" else (lambda got: f"{got:.2f} x")
        )
        cells = []
        for model in evaluation.models:
            goal = by_model.get(model.name)
            if goal is None or goal.got is None:
                cells.append("-")
            else:
                cells.append(f"{show(goal.got)} {'pass' if goal.passed else 'FAIL'}")
        first = next(iter(by_model.values()))
        lines.append([f"original goal: {label} {first.wanted} against {first.against}", *cells])
    return lines


def _has(models: Sequence[ModelResult], metric: str) -> bool:
    return any(metric in model.scores.overall.known() for model in models)


def _score_line(models: Sequence[ModelResult], label: str, metric: str) -> list[str]:
    return [label, *(_score(model.scores.overall.known().get(metric)) for model in models)]


def _group_lines(models: Sequence[ModelResult], metric: str) -> list[list[str]]:
    lines = []
    for kind in _GROUPS:
        for name in models[0].scores.by(kind):
            groups = [model.scores.by(kind).get(name) for model in models]
            scores = [None if group is None else group.known().get(metric) for group in groups]
            if any(score is not None for score in scores):
                lines.append([f"  {name}", *map(_score, scores)])
    return lines


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{score.mean:.1%} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _notes(evaluation: Evaluation) -> list[str]:
    settings, data = evaluation.settings, evaluation.data
    unknown = dict.fromkeys(model.distance_unknown for model in evaluation.models if model.distance_unknown)
    return [
        f"{counted(data.samples, 'sample')} of {data.file}, {settings.batch_size} answered at once, on {settings.device}. Brackets "
        "show 95% intervals: Wilson's for shares, else by bootstrap.",
        *_counts_line(evaluation.models),
        *sample_lines(evaluation),
        *preprocessing_lines(evaluation.models),
        *_timing_lines(settings, data.samples),
        f"Confidence: geometric mean of the tokens' probabilities. KL over the {_distance_text(evaluation)} at T = 1.",
        *(f"No distance to the teacher: {reason}" for reason in unknown),
        "",
    ]


def _timing_lines(settings: EvaluationSettings, samples: int) -> list[str]:
    """How latency and throughput were measured."""
    if not settings.timed:
        return ["Nothing was timed (--timed 0); memory is that of answers at batch 1."]
    timed = counted(min(settings.timed, samples), "answer")
    again = f", {settings.repetitions} times" if settings.repetitions > 1 else ""
    return [
        f"Latency, memory, samples/s and tokens/s: at batch 1, from files to text, over {timed}{again} after {settings.warm_up} for "
        "warm-up;",
        f"larger batches over at least {settings.requests} answers. Each user asks again as soon as the answer has come; all waiting "
        "requests are answered as one batch.",
    ]


def _distance_text(evaluation: Evaluation) -> str:
    """The targets on which the distances to the teacher were measured."""
    kinds = {model.distance_targets for model in evaluation.models}
    if "exact" in kinds:
        return "whole distributions of the exact cache"
    return "cached top-k and the tail with its shape" if "tail_rank" in kinds else "cached top-k and tail"
