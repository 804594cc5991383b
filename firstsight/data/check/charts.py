"""Histograms of a check in one PNG: lengths, answers per row, sizes of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstsight.data.check.report import DataReport

_BINS = 40
_MANY = 12  # bars, one per number; more are grouped


def draw(report: DataReport, path: Path) -> None:
    """Write the PNG.

    Args:
        report: of a check.
        path: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    lengths, answers, sizes = figure.subplots(1, 3)
    unit = "tokens" if report.tokens else "characters"
    _histogram(lengths, "Lengths", f"{unit} of a row", "rows", report.lengths)
    _bars(answers, report)
    longer = list(map(max, report.widths, report.heights))
    _histogram(sizes, "Images", "pixels of the longer side", "images", longer)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _histogram(axis: Any, title: str, unit: str, what: str, values: Sequence[int]) -> None:
    axis.set(title=title, xlabel=unit, ylabel=what)
    if not len(values):
        _none(axis)
        return
    numbers = np.asarray(values)
    low, high = max(1, int(numbers.min())), int(numbers.max())
    if high > 50 * low and high > 1000:  # lengths of very different sizes: growing bins
        edges = np.unique(np.geomspace(low, high + 1, _BINS + 1).round())
        axis.set_xscale("log")
        numbers = numbers.clip(low)
    else:
        step = max(1, -(-(high - low + 1) // _BINS))  # whole numbers: the same number of them in every bin
        edges = np.arange(low - 0.5, high + step, step)
        numbers = numbers.clip(low)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.hist(numbers, bins=edges, color="#35618f")
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    axis.yaxis.get_major_locator().set_params(integer=True)


def _bars(axis: Any, report: DataReport) -> None:
    axis.set(title="Answers", xlabel="answers of a row", ylabel="rows")
    if not report.answers:
        _none(axis)
        return
    if max(report.answers) - min(report.answers) >= _MANY:
        _histogram(axis, "Answers", "answers of a row", "rows", list(report.answers.elements()))
        return
    counts = sorted(report.answers)
    axis.bar(range(len(counts)), [report.answers[count] for count in counts], color="#35618f", width=0.7)
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    axis.set_xlim(-1, max(3, len(counts)))
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    axis.yaxis.get_major_locator().set_params(integer=True)


def _none(axis: Any) -> None:
    axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes, color="#666666")
    axis.set_xticks([])
    axis.set_yticks([])
