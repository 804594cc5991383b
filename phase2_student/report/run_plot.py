"""The validation curves of several runs in one PNG; the seeds of one objective are one curve with a band."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phase2_student.report.run_groups import named_members
from phase2_student.report.run_row import one_loss
from phase2_student.runs.records import Run

_OF_ONE_LOSS = {"loss": "Loss on validation", "kd": "KD on validation", "ce": "CE on validation, nats"}
_OF_SEVERAL = {
    "kl": "KL to the teacher at T = 1, nats",
    "ce": "CE on validation, nats",
    "agreement": "Agreement with the teacher",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run, or the mean of several."""

    label: str
    members: list[Run]

    def points(self, name: str) -> list[tuple[int, float, float]]:
        """Step, mean and standard deviation (0 for one member) of a figure, at the validations that all members have."""
        by_run = [{row["step"]: row[name] for row in run.history.validations if name in row} for run in self.members]
        steps = sorted(set.intersection(*(set(each) for each in by_run)))
        columns = [(step, [each[step] for each in by_run]) for step in steps]
        return [
            (step, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for step, values in columns
        ]


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Curves of the runs that have validations: one per run, or one per objective if it has several runs."""
    drawn = [run for run in runs if run.history.validations]
    groups = named_members(drawn)
    if len(groups) == len(drawn):
        return [Curve(label=run.name, members=[run]) for run in drawn]
    found = []
    for name, members in groups:
        # an unfinished run ends early and would cut the curve of the others, so it has its own
        if finished := [run for run in members if run.finished]:
            label = name + (f" ({len(finished)} runs)" if len(finished) > 1 else "")
            found.append(Curve(label=label, members=finished))
        found += [Curve(label=f"{run.name} (not finished)", members=[run]) for run in members if not run.finished]
    return found


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG with three panels over the steps.

    Loss, KD and CE on validation if all runs minimise the same loss; else what can be compared: KL to the teacher at T = 1, CE and
    agreement.

    Args:
        runs: the runs; those without a validation are left out.
        path: the file to write.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = curves(runs)
    panels = _OF_ONE_LOSS if one_loss(runs) else _OF_SEVERAL
    legend_rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(12, 3.6 + 0.24 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels))
    colours = colormaps["viridis" if len(drawn) > 10 else "tab10"]
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for number, curve in enumerate(drawn):
            points = curve.points(name)
            colour = colours(number / max(1, len(drawn) - 1)) if len(drawn) > 10 else colours(number)
            steps, means = [step for step, _, _ in points], [mean for _, mean, _ in points]
            axis.plot(steps, means, label=curve.label, color=colour, marker="o", markersize=3, linewidth=1.4)
            if len(curve.members) > 1:
                low, high = [mean - spread for _, mean, spread in points], [mean + spread for _, mean, spread in points]
                axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        several = any(len(curve.members) > 1 for curve in drawn)
        bands = "mean over the seeds, band: one standard deviation" if several else None
        figure.legend(
            handles,
            names,
            title=bands,
            loc="outside lower center",
            ncols=2,
            fontsize=8,
            title_fontsize=8,
            frameon=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
