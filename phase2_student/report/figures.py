"""The figures of the page, from the records of an evaluation and the histories of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from firstsight.models.gpus import bytes_text
from phase2_student.evaluation.files import student_of
from phase2_student.evaluation.results import MetricScores, ModelResult
from phase2_student.evaluation.summary import exact_difference, model_figures
from phase2_student.report.charts import Bins, Line, Share
from phase2_student.runs.records import Run

_BINS = 10
_POINTS = 300
"""Points of a curve that are drawn, at most."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure at the top of the page."""

    label: str
    value: str
    note: str


def series_of(models: Sequence[ModelResult], runs: Sequence[Run]) -> dict[str, int]:
    """The number of the series (a colour and a marker) of each model and run; a run has the number of its student."""
    names = [model.name for model in models]
    if len(runs) == 1 and "student" in names and runs[0].name not in names:
        return {name: number for number, name in enumerate(names)} | {runs[0].name: names.index("student")}
    names += [run.name for run in runs if run.name not in names]
    return {name: number for number, name in enumerate(names)}


def focus(models: Sequence[ModelResult], runs: Sequence[Run]) -> ModelResult:
    """The model that the page is about: the student of the last run that was evaluated, else the last model."""
    return next((found for run in reversed(runs) if (found := student_of(models, run))), models[-1])


def teacher_of(models: Sequence[ModelResult]) -> ModelResult | None:
    """The first teacher that was evaluated; None if there is none."""
    return next((model for model in models if model.role == "teacher"), None)


def hard_labels_of(models: Sequence[ModelResult], runs: Sequence[Run], student: ModelResult) -> ModelResult | None:
    """The student of the last run on hard labels alone; None if it was not evaluated or is the page's own student."""
    hard = (student_of(models, run) for run in reversed(runs) if run.setting("loss.alpha") == 0)
    return next((model for model in hard if model is not None and model is not student), None)


def students_first(models: Sequence[ModelResult], student: ModelResult) -> list[int]:
    """The order of the models on a narrow page: the student that it is about, other trained ones, the base, teachers."""

    def rank(number: int) -> int:
        model = models[number]
        return 0 if model is student else 3 if model.role == "teacher" else 2 if model.name == "base" else 1

    return sorted(range(len(models)), key=rank)


def tiles(models: Sequence[ModelResult], student: ModelResult, hard: ModelResult | None = None) -> list[Tile]:
    """The figures at the top of the page.

    Args:
        models: the models of the evaluation.
        student: the student that the page is about.
        hard: a student trained on labels alone, true ones or the teacher's answers; None: there is none to compare with.
    """
    teacher = teacher_of(models)
    base = next((model for model in models if model.name == "base"), None)
    others = [model for model in (teacher, base, hard) if model is not None and model is not student]
    mine = model_figures(student)
    found = []
    if share := overall(student):
        shares = [(model.name, overall(model)) for model in others]
        found.append(
            Tile(
                label=f"exact match, {student.name}",
                value=f"{share.mean:.1%}",
                note=", ".join(f"{name} {other.mean:.1%}" for name, other in shares if other is not None),
            )
        )
    elif mine.agreement is not None:
        found.append(
            Tile(
                label=f"agreement, {student.name}",
                value=f"{mine.agreement:.1%}",
                note="share of positions with the teacher's most likely token",
            )
        )
    if hard is not None and (difference := exact_difference(student, hard)):
        mean, low, high = difference
        found.append(
            Tile(
                label=f"points over {hard.name}",
                value=f"{100 * mean:+.1f}",
                note=f"95% interval [{100 * low:+.1f}, {100 * high:+.1f}], exact match; it learned from labels alone",
            )
        )
    theirs = model_figures(teacher) if teacher is not None and teacher is not student else None
    if mine.size_mb:
        note = f"the teacher's: {theirs.size_mb / mine.size_mb:.1f} x as large" if theirs and theirs.size_mb else ""
        found.append(Tile(label="weights on disk", value=bytes_text(1e6 * mine.size_mb), note=note))
    if latency := mine.latency_p50_ms:
        note = "p50 at batch 1"
        if theirs and theirs.latency_p50_ms:
            note += f"; the teacher takes {theirs.latency_p50_ms / latency:.1f} x as long"
        found.append(Tile(label="time to an answer", value=f"{latency:,.0f} ms", note=note))
    if mine.kl is not None:
        from_base = model_figures(base).kl if base is not None and base is not student else None
        note = f"nats per answer token; base {from_base:.3f}" if from_base is not None else "nats per answer token"
        found.append(Tile(label="KL to the teacher", value=f"{mine.kl:.3f}", note=note))
    return found


def overall(model: ModelResult) -> Share | None:
    """Share of exact answers over all samples with a true answer; None if no sample has one."""
    return _share(model.scores.overall)


def by_group(
    models: Sequence[ModelResult], kind: Literal["category", "environment"]
) -> list[tuple[str, list[Share | None]]]:
    """Rows of a chart: share of exact answers per category or environment and model, `all` first; empty without groups
    or true answers.
    """
    names = sorted(
        {name for model in models for name, scores in model.scores.by(kind).items() if scores.exact is not None}
    )
    if not names:
        return []
    rows: list[tuple[str, list[Share | None]]] = [("all", [overall(model) for model in models])]
    for name in names:
        shares: list[Share | None] = []
        for model in models:
            scores = model.scores.by(kind).get(name)
            shares.append(None if scores is None else _share(scores))
        rows.append((name.replace("_", " "), shares))
    return rows


def _share(scores: MetricScores) -> Share | None:
    exact = scores.exact
    return None if exact is None else Share(mean=exact.mean, low=exact.low, high=exact.high)


def calibration(model: ModelResult, series: int) -> tuple[Bins, float] | None:
    """Bins of equal width, and the expected calibration error; None if no record has both a confidence and a true answer.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2.
    """
    known = [
        (record.confidence, record.exact)
        for record in model.samples
        if record.confidence is not None and record.exact is not None
    ]
    if not known:
        return None
    confidence = np.array([sure for sure, _ in known])
    right = np.array([float(exact) for _, exact in known])
    numbers = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    filled = [numbers == number for number in range(_BINS) if (numbers == number).any()]
    bins = Bins(
        series=series,
        confidence=[float(confidence[mask].mean()) for mask in filled],
        right=[float(right[mask].mean()) for mask in filled],
        counts=[int(mask.sum()) for mask in filled],
    )
    error = sum(
        count / len(known) * abs(share - sure)
        for count, share, sure in zip(bins.counts, bins.right, bins.confidence, strict=True)
    )
    return bins, error


def history_lines(runs: Sequence[Run], name: str, series: dict[str, int]) -> list[Line]:
    """Curves of one part of the loss over the steps: dashed for training as logged, solid for validations.

    Older runs logged training once per epoch.
    """
    lines = []
    for run in runs:
        older = [{"step": row["step"], **row["train"]} for row in run.history.epochs]
        for entries, dashed in ((run.history.logged or older, True), (run.history.validations, False)):
            points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
            if points:
                x, y = zip(*_thinned(points), strict=True)
                lines.append(Line(series=series[run.name], x=x, y=y, dashed=dashed))
    return lines


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that a page does not grow with the steps of a run."""
    size = -(-len(points) // _POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
