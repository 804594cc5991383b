"""Charts as SVG with the colours and the font of the page, so that they are legible in light and dark mode.

Every chart is about as wide as a phone: a page puts several side by side if it has room.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 4.4  # inches of 72 px
SERIES = 6
"""Number of colours; a seventh series has the first colour again, with another marker."""
MARKERS = "osD^vP"
SYMBOLS = "●■◆▲▼✚"

# matplotlib needs colours: these stand for the page's variables
_INK, _SOFT, _LINE = "#010203", "#010204", "#010205"
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line"} | {
    f"#0102{16 + n:02x}": f"--series-{n}" for n in range(6)
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def color(series: int) -> str:
    """The colour of a series for matplotlib; the page replaces it by its variable `--series-N`."""
    return f"#0102{16 + series % SERIES:02x}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve."""

    series: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def curves(title: str, lines: Sequence[Line], *, xlabel: str) -> Markup:
    """Curves over one axis; a curve of one point is drawn as a point."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2.7)
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                color=color(line.series),
                linestyle=(0, (3, 2)) if line.dashed else "-",
                marker=MARKERS[line.series % SERIES] if not line.dashed or len(line.x) == 1 else None,
                linewidth=1.3 if line.dashed else 1.8,
            )
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, title)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share, 0 to 1, and its interval."""

    mean: float
    low: float
    high: float


def intervals(title: str, rows: Sequence[tuple[str, Sequence[Share | None]]]) -> Markup:
    """One row per group, with a dot and its interval for each series, the first series on top."""
    with mpl.rc_context(_STYLE):
        count = max((len(shares) for _, shares in rows), default=1)
        pitch = 0.17 * count + 0.16  # inches of a row
        figure, axes = _figure(0.9 + pitch * len(rows))
        for row, (_, shares) in enumerate(rows):
            for series, share in enumerate(shares):
                if share is None:
                    continue
                y = row + (series - (count - 1) / 2) * 0.17 / pitch
                axes.plot([100 * share.low, 100 * share.high], [y, y], color=color(series), linewidth=1.6)
                axes.plot([100 * share.mean], [y], color=color(series), marker=MARKERS[series % SERIES])
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", labelcolor=_INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("exact match, %")
        axes.yaxis.grid(False)
        for edge in range(1, len(rows)):
            axes.axhline(edge - 0.5, color=_LINE, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        return _svg(figure, title)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """A reliability diagram of one series."""

    series: int
    confidence: Sequence[float]
    right: Sequence[float]
    counts: Sequence[int]


def reliability(title: str, bins: Sequence[Bins]) -> Markup:
    """Share of right answers over mean confidence; the larger a marker, the more answers it represents."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.9)
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (2, 3)))
        for each in bins:
            total = max(1, sum(each.counts))
            sizes = [14 + 220 * count / total for count in each.counts]
            axes.plot(each.confidence, each.right, color=color(each.series), linewidth=1.2, alpha=0.7)
            axes.scatter(
                each.confidence,
                each.right,
                s=sizes,
                color=color(each.series),
                marker=MARKERS[each.series % SERIES],
                alpha=0.85,
            )
        axes.set_title(title)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        return _svg(figure, title)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> Markup:
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():  # ids differ from chart to chart
        warnings.filterwarnings("ignore", "Glyph")  # the browser has a font for every name
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # every chart of the page would have figure_1
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page has its own
    text = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL
    )  # it would apply to the whole page
    for code, variable in _VARIABLES.items():
        text = text.replace(code, f"var({variable})")
    head = Markup('<svg class="chart" role="img" aria-label="{}"').format(title)
    return head + Markup(text.removeprefix("<svg"))
