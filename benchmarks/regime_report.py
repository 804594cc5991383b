"""The page of `benchmarks.regimes`: tables and a chart in docs/benchmarks.md, figures in benchmarks/results/regimes.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.regime_data import REGIMES
from benchmarks.suite.page import write_section
from phase2_student.evaluation.metrics.intervals import paired_bootstrap
from phase2_student.runs.files import write_json

COMMAND = "python -m benchmarks.regimes"
_MODELS = ("teacher", "base")
"""Models that are measured without a training run."""

Rows = Sequence[dict[str, Any]]


def write_report(rows: Rows, docs: Path) -> None:
    """Write tables, chart and figures of the runs so far; the rest of the page is left as it is."""
    figures = {
        name: found
        for name in REGIMES
        if (found := regime_figures([row for row in rows if row["regime"] == name], name))
    }
    if not figures:
        return
    docs.mkdir(parents=True, exist_ok=True)
    results = docs.parent / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "regimes.json", {"sizes": rows[0]["sizes"], "regimes": figures})
    _draw(figures, docs / "regimes.png")
    write_section(docs / "benchmarks.md", COMMAND, _text(figures, rows[0]["sizes"]))


def regime_figures(rows: Rows, regime: str) -> dict[str, Any]:
    """Every arm that has runs: its learning rate, its metrics seed by seed, and its differences to the rivals.

    For the first seed, only the run with the best learning rate counts.
    """
    runs = _counted(rows)
    found: dict[str, Any] = {}
    for name, of_arm in runs.items():
        found[name] = {
            "rate": of_arm[0].get("rate"),
            "seeds": len(of_arm),
            "right": [100 * float(np.mean(_hits(run))) for run in of_arm],
            **{
                field: [float(np.mean(run[field])) for run in of_arm]
                for field in ("nll", "kl", "kl_truth")
                if field in of_arm[0]
            },
        }
        if "calibration" in of_arm[0]:
            found[name]["calibration"] = [run["calibration"] for run in of_arm]
        for rival in ("hard", "answers"):
            if name not in (rival, *_MODELS) and rival in runs:
                count = min(len(of_arm), len(runs[rival]))
                found[name][f"minus {rival}"] = _difference(of_arm[:count], runs[rival][:count], regime)
    return found


def _counted(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """The runs of each arm that count, by seed: all those with the best learning rate."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == name]
        if name not in _MODELS:
            rate = min((row for row in of_arm if row["seed"] == 0), key=lambda row: row["validation_loss"])["rate"]
            of_arm = [row for row in of_arm if row["rate"] == rate]
        runs[name] = sorted(of_arm, key=lambda row: row["seed"])
    return runs


def _difference(runs: Rows, rivals: Rows, regime: str) -> list[float]:
    """Mean and interval of the difference on the test rows, each with its mean over the seeds: in points of right answers, or, if
    many answers are valid, in nats per token of NLL.
    """
    field, factor = ("nll", 1) if regime == "C" else ("right", 100)
    mine, theirs = (
        np.mean([_hits(run) if field == "right" else run[field] for run in group], axis=0) for group in (runs, rivals)
    )
    return [factor * value for value in paired_bootstrap(mine.tolist(), theirs.tolist())]


def _hits(run: dict[str, Any]) -> list[int]:
    return [int(digit) for digit in run["right"]]


def _text(figures: dict[str, Any], sizes: dict[str, int]) -> str:
    parts = [
        "## Where distillation wins: few, wrong, ambiguous and clean labels",
        f"The miniature pair, {sizes['train']:,} training samples, {sizes['steps']} steps of {sizes['batch']} samples; learning rate "
        f"(two tried) and checkpoint chosen on {sizes['validation']} validation rows by each arm's own loss; {sizes['test']} test rows. "
        "Mean +- standard deviation over the seeds; in brackets 95% intervals of the paired bootstrap over the test rows, each row's "
        "mean over the seeds. `hard`: the labels alone; `answers`: the teacher's greedy answers as labels; the others are distilled from "
        "the cache, forward KL with alpha = 0.7 on 64 stored entries unless stated otherwise; `shuffled`: the targets of other samples; "
        "`own answers`: targets along the teacher's own answers, without labels.",
        "![Every seed of every arm](regimes.png)",
    ]
    for name, found in figures.items():
        parts += [f"### {name}: {REGIMES[name].title}", _table(found, ambiguous=name == "C")]
    return "\n\n".join(parts)


def _table(found: dict[str, Any], *, ambiguous: bool) -> str:
    right = "valid answers, %" if ambiguous else "exact match, %"
    fields = {"right": (right, 1), "nll": ("NLL of the true answer, nats/token", 4), "kl": ("KL to the teacher", 4)}
    if ambiguous:
        fields |= {"kl_truth": ("KL to the truth", 4), "calibration": ("calibration error", 4)}
    unit = "NLL" if ambiguous else "points"
    header = ["arm", "lr", "seeds", *(label for label, _ in fields.values()), f"- hard, {unit}", f"- answers, {unit}"]
    lines = [header, ["---"] * len(header)]
    for name, arm in found.items():
        cells = [
            f"`{name}`",
            "" if arm["rate"] is None else f"{arm['rate']:g}",
            "" if name in _MODELS else str(arm["seeds"]),
        ]
        cells += [_spread(arm[field], digits) for field, (_, digits) in fields.items()]
        for rival in ("hard", "answers"):
            difference = arm.get(f"minus {rival}")
            cells.append("" if difference is None else _interval(difference, 4 if ambiguous else 1))
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} +- {np.std(values, ddof=1):.{digits}f}"


def _interval(difference: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in difference)
    return f"{mean} [{low}, {high}]"


def _draw(figures: dict[str, Any], path: Path) -> None:
    """A panel for each regime: every seed of every arm as a point, their mean as a line; teacher and base across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [max(4, len(found) - len(_MODELS)) for found in figures.values()]
    figure = Figure(figsize=(9, 1.1 * len(figures) + 0.27 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(figures), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (regime, found) in zip(panels, figures.items(), strict=True):
        field, label = (
            ("nll", "NLL, nats per token (lower is better)") if regime == "C" else ("right", "exact match, %")
        )
        names = [name for name in found if name not in _MODELS]
        for place, name in enumerate(names):
            colour = {"hard": "tab:grey", "answers": "tab:orange", "shuffled": "tab:red"}.get(name, "tab:blue")
            values = found[name][field]
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.45, markersize=4)
            axis.plot([np.mean(values)], [place], "|", color=colour, markersize=14, markeredgewidth=2.2)
        for name, style in zip(_MODELS, (":", "--"), strict=True):
            if name in found:
                axis.axvline(found[name][field][0], color="black", linestyle=style, linewidth=1, label=name)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(label, fontsize=8)
        axis.set_title(f"{regime}: {REGIMES[regime].title}", fontsize=9, loc="left")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize=7, loc="center right", frameon=False)
    figure.savefig(path, dpi=120, format="png")
