"""The GPU benchmark's results as a section and a picture of docs/benchmarks.md, and the ratios that README names.

write_page(read_board(Path("benchmarks/results/gpu.json")), Path("docs"))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.board import Board, cell
from benchmarks.gpu.cost import RUNS, SAMPLES
from benchmarks.gpu.dump import row_name as dump_row
from benchmarks.gpu.sizes import FULL
from benchmarks.gpu.step import CACHED, CACHED_KAHAN, EXACT, ONLINE, ONLINE_KAHAN, STOCK
from benchmarks.suite.page import results_table, write_section
from benchmarks.suite.result import Result, Unit, compared

GPU_RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
COMMAND = "make bench-gpu"
PAGE = "benchmarks.md"
PICTURE = "gpu.png"

_PASS = FULL.dumps[0][0]
_INT8, _BF16 = dump_row("int8", _PASS), dump_row("bf16", _PASS)
_FUSED, _CE = "fused, chunk 256", "cross-entropy, bf16 logits made fp32"
_ON_CACHE = "a step on the cache"


@dataclass(frozen=True, kw_only=True)
class _Ratio:
    """A cell of the table over another one."""

    name: str
    what: str
    baseline: str
    part: str
    mine: tuple[str, str]
    """Row and column."""
    theirs: tuple[str, str]
    unit: Unit = "s"


RATIOS = (
    _Ratio(
        name="gpu.step.time.cached", what=_ON_CACHE, baseline="a stock fine-tuning step", part="step",
        mine=(CACHED, "s per step"), theirs=(STOCK, "s per step"),
    ),
    _Ratio(
        name="gpu.step.memory.cached", what=_ON_CACHE, baseline="a stock fine-tuning step", part="step",
        mine=(CACHED, "peak GB"), theirs=(STOCK, "peak GB"), unit="GB",
    ),
    _Ratio(
        name="gpu.step.time.online", what="a step with the int8 teacher in memory", baseline=_ON_CACHE, part="step",
        mine=(ONLINE, "s per step"), theirs=(CACHED, "s per step"),
    ),
    _Ratio(
        name="gpu.step.memory.online", what="a step with the int8 teacher in memory", baseline=_ON_CACHE, part="step",
        mine=(ONLINE, "peak GB"), theirs=(CACHED, "peak GB"), unit="GB",
    ),
    _Ratio(
        name="gpu.step.time.exact", what="a step on exact targets", baseline=_ON_CACHE, part="step",
        mine=(EXACT, "s per step"), theirs=(CACHED, "s per step"),
    ),
    _Ratio(
        name="gpu.step.time.kahan", what="a step on the cache, bf16 with Kahan's remainder", baseline="float32 masters",
        part="step", mine=(CACHED_KAHAN, "s per step"), theirs=(CACHED, "s per step"),
    ),
    _Ratio(
        name="gpu.step.memory.kahan", what="a step on the cache, bf16 with Kahan's remainder", baseline="float32 masters",
        part="step", mine=(CACHED_KAHAN, "peak GB"), theirs=(CACHED, "peak GB"), unit="GB",
    ),
    _Ratio(
        name="gpu.dump.time.bare", what="a dump of the int8 teacher", baseline="its bare forward passes", part="dump",
        mine=(_INT8, "s"), theirs=(_INT8, "bare, s"),
    ),
    _Ratio(
        name="gpu.dump.time.int8", what="a dump of the int8 teacher", baseline="the same in bf16", part="dump",
        mine=(_INT8, "s"), theirs=(_BF16, "s"),
    ),
    _Ratio(
        name="gpu.dump.memory.int8", what="a dump of the int8 teacher", baseline="the same in bf16", part="dump",
        mine=(_INT8, "peak GB"), theirs=(_BF16, "peak GB"), unit="GB",
    ),
    _Ratio(
        name="gpu.dump.time.exact", what="a dump of exact targets", baseline="of top_k targets", part="dump",
        mine=(dump_row("int8", _PASS, "exact"), "s"), theirs=(_INT8, "s"),
    ),
    _Ratio(
        name="gpu.loss.time.fused", what="the loss, 2,048 positions", baseline="bf16 cross-entropy", part="loss",
        mine=(_FUSED, "ms"), theirs=(_CE, "ms"), unit="ms",
    ),
    _Ratio(
        name="gpu.loss.memory.fused", what="the loss, 2,048 positions", baseline="bf16 cross-entropy", part="loss",
        mine=(_FUSED, "peak GB"), theirs=(_CE, "peak GB"), unit="GB",
    ),
)  # fmt: skip
"""What the page and README divide by what."""

_TABLES = (
    (
        "step",
        "An optimiser step of the reference recipe: 8 samples of 1,300 tokens",
        ("s per step", "samples/s", "peak GB", "planned GB"),
    ),
    (
        "dump",
        "The dump, from picture files to committed units",
        (
            *("samples/s", "positions/s", "peak GB", "dump / bare", "x top_k"),
            *("self-check, s", "head, s", "first unit, s", "directions, s"),
        ),
    ),
    ("answers", "Answers of 40 tokens at batch 1", ("p50 s", "tokens/s", "weights GB", "peak GB")),
    (
        "loss",
        "The loss and its gradient at 2,048 positions",
        ("ms", "peak GB", "x forward KL", "x its memory"),
    ),
    ("loss", "Its error against float64", ("error of the loss", "error of d states", "error of d head")),
    (
        "cost",
        f"GPU-hours of {SAMPLES:,} samples, from the rates above",
        ("dump, h", "cached with dump, h", "online, h", "online / cached"),
    ),
)
"""Part, title and columns; a row with none of them is left out."""


def read_board(path: Path) -> Board:
    """The rows and facts of a file; nothing is measured. FileNotFoundError."""
    found = json.loads(path.read_text(encoding="utf-8"))
    board = Board(0, None, found["facts"])
    board.rows, board.runs = found["rows"], found["runs"]
    return board


def ratios(board: Board) -> list[Result]:
    """The ratios of a run, each measured once; left out where a row is missing."""
    found = []
    for each in RATIOS:
        mine, theirs = ((board.find(each.part, row) or {}).get(column) for row, column in (each.mine, each.theirs))
        if mine is not None and theirs is not None:
            found.append(compared(each.name, each.what, each.baseline, mine=[mine], theirs=[theirs], unit=each.unit))
    return [each for each in found if isinstance(each, Result)]


def page_text(board: Board) -> str:
    """All rows in Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in board.facts.items() if name != "tiny")
    lines = [
        "## At full size on a GPU",
        "",
        "Qwen2-VL-7B and -2B with random weights: time and memory are those of the published pair, losses and answers mean nothing. "
        "One run; a step is the median of three, the loss and an answer of five.",
        "",
        f"Measured on: {facts}.",
        "",
        f"![A step, the dump, and GPU-hours by the number of runs]({PICTURE})",
        "",
        *results_table(ratios(board)),
    ]
    for part, title, columns in _TABLES:
        rows = [row for row in board.rows if row["part"] == part and set(columns) & row.keys()]
        kept = [column for column in columns if any(column in row for row in rows)]
        if rows:
            lines += ["", f"### {title}", "", f"| | {' | '.join(kept)} |", "|---" * (len(kept) + 1) + "|"]
            lines += [f"| {row['name']} | {' | '.join(cell(row.get(column, '')) for column in kept)} |" for row in rows]
    for key, value in {json.dumps(run): run for run in board.runs.values()}.items():
        parts = ", ".join(part for part, run in board.runs.items() if json.dumps(run) == key)
        lines += ["", f"{parts}: {value['date']}, {value['commit']}, `{value['command']}`."]
    missing = [(row, kind) for row in board.rows for kind in ("skipped", "failed") if kind in row]
    lines += ["", *(f"- {row['part']}, {row['name']}: not measured, {row[kind]}" for row, kind in missing)]
    return "\n".join(lines).strip()


def write_page(board: Board, docs: Path) -> None:
    """Write the section of docs/benchmarks.md and its picture. ValueError: the page's marks are damaged."""
    draw(board, docs / PICTURE)
    write_section(docs / PAGE, COMMAND, page_text(board))


def draw(board: Board, path: Path) -> None:
    """A step's time and memory, samples per second of a dump, and GPU-hours by the number of runs on one cache."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    steps, dumps, hours = figure.subplots(1, 3)
    shown = [
        (title, row)
        for title, name in (
            ("stock\nfine-tuning", STOCK),
            ("cached", CACHED),
            ("cached,\nKahan", CACHED_KAHAN),
            ("teacher in\nmemory", ONLINE),
            ("the same,\nKahan", ONLINE_KAHAN),
        )
        if (row := board.find("step", name))
    ]
    _bars(steps, [title for title, _ in shown], [row["s per step"] for _, row in shown], "s", "tab:blue")
    for place, (_, row) in enumerate(shown):
        if "peak GB" in row:
            steps.annotate(f"{row['peak GB']:.0f} GB", (place, 0.1), ha="center", color="white", fontsize=8)
    steps.set_title("A step of 8 samples: seconds, peak memory", fontsize=9)
    teachers = [
        (f"{kind}, {targets}", row["samples/s"])
        for kind, targets in (("int8", "top_k"), ("int8", "tail"), ("int8", "exact"), ("bf16", "top_k"))
        if (row := board.find("dump", dump_row(kind, _PASS, targets)))
    ]
    _bars(dumps, [title.replace(", ", ",\n") for title, _ in teachers], [rate for _, rate in teachers], "", "tab:green")
    dumps.set_title("The dump, samples per second", fontsize=9)
    _hours(hours, board.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, titles: Sequence[str], values: Sequence[float], unit: str, colour: str) -> None:
    bars = axes.bar(range(len(values)), values, color=colour)
    axes.bar_label(bars, [f"{cell(value)} {unit}".strip() for value in values], fontsize=8)
    axes.set_xticks(range(len(values)), titles, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _hours(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Online and cached, with float32 masters, a point for each number of runs."""
    of_runs = [row for row in rows if row["part"] == "cost" and row["name"].endswith("epochs, fp32 masters")]
    of_runs = [row for row in of_runs if "online, h" in row]
    runs = [count for count, _ in zip(RUNS, of_runs, strict=False)]
    for column, colour, above in (("online, h", "tab:red", 5), ("cached with dump, h", "tab:blue", -12)):
        values = [row[column] for row in of_runs]
        axes.plot(
            runs,
            values,
            "o-",
            color=colour,
            label={"online, h": "teacher in memory"}.get(column, "cached, with the dump"),
        )
        for count, value in zip(runs, values, strict=True):
            axes.annotate(f"{value:.0f}", (count, value), textcoords="offset points", xytext=(2, above), fontsize=8)
    axes.set_xticks(runs)
    axes.set_xlabel("runs on one cache", fontsize=8)
    axes.set_title(f"GPU-hours, {SAMPLES:,} samples, 10 epochs a run", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
