"""The validation curves of several runs in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phase2_student.runs.records import Run

_PANELS = {"loss": "Loss on validation", "kd": "KD on validation", "ce": "CE on validation, nats"}


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG with one panel each for loss, KD and CE on validation, over the steps.

    Args:
        runs: the runs; those without a validation are left out.
        path: the file to write.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [run for run in runs if run.history.validations]
    legend_rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(12, 3.6 + 0.24 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(_PANELS))
    colours = colormaps["viridis" if len(drawn) > 10 else "tab10"]
    for axis, (name, title) in zip(axes, _PANELS.items(), strict=True):
        for number, run in enumerate(drawn):
            rows = [row for row in run.history.validations if name in row]
            colour = colours(number / max(1, len(drawn) - 1)) if len(drawn) > 10 else colours(number)
            axis.plot(
                [row["step"] for row in rows],
                [row[name] for row in rows],
                label=run.name,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.4,
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
