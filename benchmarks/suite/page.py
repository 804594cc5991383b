"""The suite's results as Markdown and as a chart, and how a command writes its part of a page.

write_section(Path("docs/benchmarks.md"), "make bench", page_text(suite))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.suite.parts import PARTS
from benchmarks.suite.result import PartRun, Result, Suite, number

_TITLE = "# Benchmarks\n\nThe text between two marks is written by the command that the first mark names.\n"


def check_section(path: Path, command: str) -> None:
    """Raise ValueError if a page has one mark of a command without the other, or one of them twice."""
    if path.is_file():
        _split(path, path.read_text(encoding="utf-8"), command)


def _marks(command: str) -> tuple[str, str]:
    return f"<!-- {command}: begin -->", f"<!-- {command}: end -->"


def _split(path: Path, page: str, command: str) -> tuple[str, str]:
    """The text before and after the command's section; ValueError."""
    begin, end = _marks(command)
    if (page.count(begin), page.count(end)) == (0, 0):
        return f"{page.rstrip()}\n\n", "\n"
    if (page.count(begin), page.count(end)) == (1, 1) and page.index(begin) < page.index(end):
        return page[: page.index(begin)], page[page.index(end) + len(end) :]
    raise ValueError(f"{path}: needs {begin} once and {end} once after it; repair the page or delete both marks")


def write_section(path: Path, command: str, text: str) -> None:
    """Put a text between the marks of a command; if the page has no such marks yet, at its end.

    Args:
        path: the page; created if it does not exist.
        command: the command that writes the text.
        text: Markdown.

    Raises:
        ValueError: one mark without the other, or one of them twice.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else _TITLE
    before, behind = _split(path, page, command)
    begin, end = _marks(command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{behind}", encoding="utf-8")


def page_text(suite: Suite, picture: str) -> str:
    """All results in Markdown.

    Args:
        suite: the suite to show.
        picture: file name of the chart, in the page's directory.
    """
    lines = ["## What it costs", "", *_machine(list(suite.parts.values())), "", f"![Ratios]({picture})"]
    for name, run in suite.parts.items():
        lines += ["", f"### {PARTS[name].title}", ""]
        lines += results_table(run.results)
        if run.skipped:
            lines.append("")
        lines += [f"- `{each.name}`: not measured, {each.reason}" for each in run.skipped]
        lines += [
            "",
            f"`{name}`: {run.seconds:,.0f} s, at most {number(run.peak_mb)} MB; {run.date}, {run.commit}, load {run.load:.1f}.",
        ]
    return "\n".join(lines)


def results_table(results: Sequence[Result]) -> list[str]:
    """The lines of a table in Markdown; none without results."""
    lines = ["| | against | | spread | turns | | name |", "|---|---|---|---|---|---|---|"] if results else []
    for each in results:
        cells = [each.what, each.baseline, f"**{each.shown}**", each.spread, str(each.repeats), each.figures]
        lines.append(f"| {' | '.join(cells)} | `{each.name}` |")
    return lines


def _machine(runs: Sequence[PartRun]) -> list[str]:
    """Machines and versions, listed once if they are the same for all parts."""
    known: dict[str, list[str]] = {}
    for run in runs:
        known.setdefault(", ".join(f"{name} {value}" for name, value in run.facts.items()), []).append(run.part)
    warning = (
        ["**Sizes of a test (`--quick`): these figures mean nothing.**", ""] if any(run.quick for run in runs) else []
    )
    if len(known) == 1:
        return [*warning, f"Measured on: {next(iter(known))}."]
    return [*warning, *(f"- {', '.join(parts)}: {facts}" for facts, parts in known.items())]


def draw(suite: Suite, path: Path) -> None:
    """Draw all ratios on one logarithmic scale, part by part, with their spread."""
    from matplotlib.figure import Figure  # takes a second

    lines: list[Result | str] = []
    for name, run in suite.parts.items():
        ratios = [each for each in run.results if each.kind == "ratio"]
        lines += [PARTS[name].title, *ratios] if ratios else []
    figure = Figure(figsize=(13, 1.2 + 0.27 * max(1, len(lines))), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axvline(1, color="0.4", linewidth=1)
    for place, line in enumerate(lines):
        if isinstance(line, str):
            axes.axhline(place, color="0.9", linewidth=9, zorder=0)
            continue
        axes.plot([line.low, line.high], [place, place], color="0.5", linewidth=2)
        axes.plot([line.median], [place], "o", color="tab:blue" if line.unit == "s" else "tab:orange", markersize=5)
    axes.set_yticks(range(len(lines)), [line if isinstance(line, str) else _label(line) for line in lines], fontsize=8)
    for tick, line in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if isinstance(line, str) else "normal")
    axes.set_ylim(max(1, len(lines)) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.xaxis.set_major_formatter("{x:g} x")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.suptitle("Ratios: median of the turns, smallest to largest. Blue: time; orange: memory and size", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _label(result: Result) -> str:
    return f"{result.what} / {result.baseline}: {result.shown}"
