"""The figures of the page, from the records of an evaluation and the histories of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from phase2_student.evaluation.evaluations import student_of
from phase2_student.evaluation.summary import model_row
from phase2_student.report.charts import Bins, Line, Share
from phase2_student.runs.records import Run

_BINS = 10


def series_of(models: Sequence[dict[str, Any]], runs: Sequence[Run]) -> dict[str, int]:
    """A series, which is a colour and a marker, for each model and each run; a run has that of its student."""
    names = [model["name"] for model in models]
    if len(runs) == 1 and "student" in names and runs[0].name not in names:
        return {name: number for number, name in enumerate(names)} | {runs[0].name: names.index("student")}
    names += [run.name for run in runs if run.name not in names]
    return {name: number for number, name in enumerate(names)}


def focus(models: Sequence[dict[str, Any]], runs: Sequence[Run]) -> dict[str, Any]:
    """The model that the page is about: the student of the last run that was evaluated, else the last model."""
    return next((found for run in reversed(runs) if (found := student_of(models, run))), models[-1])


def teacher_of(models: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first teacher, where one was evaluated."""
    return next((model for model in models if model["role"] == "teacher"), None)


def tiles(models: Sequence[dict[str, Any]], student: dict[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page: `{"label", "value", "note"}`."""
    teacher = teacher_of(models)
    base = next((model for model in models if model["name"] == "base"), None)
    others = [model for model in (teacher, base) if model is not None and model is not student]
    share = overall(student)
    found = [
        {
            "label": f"exact match, {student['name']}",
            "value": f"{share.mean:.1%}",
            "note": ", ".join(f"{model['name']} {overall(model).mean:.1%}" for model in others),
        }
    ]
    row = model_row(student)
    theirs = model_row(teacher) if teacher is not None and teacher is not student else {}
    size, latency, kl = (row.get(key) for key in ("size_mb", "latency_p50_ms", "kl"))
    if size:
        before = theirs.get("size_mb")
        note = f"the teacher's are {before / size:.1f} x as large" if before else ""
        found.append({"label": "weights on disk", "value": _size(size), "note": note})
    if latency:
        before = theirs.get("latency_p50_ms")
        note = f"p50 at batch 1; the teacher takes {before / latency:.1f} x as long" if before else "p50 at batch 1"
        found.append({"label": "time to an answer", "value": f"{latency:,.0f} ms", "note": note})
    if kl is not None:
        from_base = model_row(base).get("kl") if base is not None and base is not student else None
        note = f"nats per answer token; base {from_base:.3f}" if from_base is not None else "nats per answer token"
        found.append({"label": "KL to the teacher", "value": f"{kl:.3f}", "note": note})
    return found


def overall(model: dict[str, Any]) -> Share:
    """Share of exact answers over all samples."""
    return _share(model["scores"]["overall"])


def by_group(models: Sequence[dict[str, Any]], key: str) -> list[tuple[str, list[Share | None]]]:
    """Rows of a chart: share of exact answers per category or environment and model, `all` first; empty without groups."""
    names = sorted({str(r[key]) for model in models for r in model["samples"] if r[key] is not None})
    if not names:
        return []
    rows: list[tuple[str, list[Share | None]]] = [("all", [overall(model) for model in models])]
    for name in names:
        shares: list[Share | None] = []
        for model in models:
            scores = model["scores"][key].get(name)
            shares.append(None if scores is None else _share(scores))
        rows.append((name.replace("_", " "), shares))
    return rows


def _share(scores: dict[str, Any]) -> Share:
    exact = scores["exact"]
    return Share(mean=exact["mean"], low=exact["low"], high=exact["high"])


def calibration(model: dict[str, Any], series: int) -> tuple[Bins, float] | None:
    """Bins of equal width, and the expected calibration error; None where no record has a confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2.
    """
    known = [record for record in model["samples"] if record["confidence"] is not None]
    if not known:
        return None
    confidence = np.array([record["confidence"] for record in known])
    right = np.array([float(record["exact"]) for record in known])
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
    """Curves of a part of the loss: dashed over the training of each epoch, solid on the validation at its end."""
    lines = []
    for run in runs:
        for split, dashed in (("train", True), ("validation", False)):
            points = [
                (row["epoch"], row[split][name])
                for row in run.history
                if row.get(split) and row[split].get(name) is not None
            ]
            if points:
                x, y = zip(*points, strict=True)
                lines.append(Line(series=series[run.name], x=x, y=y, dashed=dashed))
    return lines


def _size(megabytes: float) -> str:
    return f"{megabytes / 1e3:,.2f} GB" if megabytes >= 1e3 else f"{megabytes:,.1f} MB"
