"""Everything that only a GPU can measure, at full size, in about seven minutes; see benchmarks/README.md.

    python -m benchmarks.gpu [--budget 440 --out build/gpu.json]
    python -m benchmarks.gpu --only loss,step    # these parts; the file keeps its other rows
    python -m benchmarks.gpu --tiny              # the whole script at a small size, also on a CPU
    python -m benchmarks.gpu --report            # docs/benchmarks.md from benchmarks/results/gpu.json, without a GPU

Models have the shapes of Qwen2-VL-7B and -2B and random weights, made on the device: nothing is downloaded. A part that
fails is a row, the next ones still run, and the exit code is 1.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.gpu.board import Board
from benchmarks.machine import commit

ROOT = Path(__file__).parents[2]
PARTS = ("loss", "step", "dump", "answers", "cost")
"""In order of value. Each is a module in this folder."""


def _parse_parts(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = text.split(",") if text else PARTS
    for name in names:
        if name not in PARTS:
            raise click.BadParameter(f"{name!r} is not a part; the parts are {', '.join(PARTS)}")
    if {"step", "dump"} & set(names):
        names = [*names, "cost"]  # computed from these
    return tuple(name for name in PARTS if name in names)


@click.command()
@click.option(
    "--only", "parts", callback=_parse_parts, help=f"Parts to run, separated by commas; default: {','.join(PARTS)}."
)
@click.option("--budget", default=440.0, show_default=True, help="Seconds; a row that no longer fits is skipped.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON file [default: build/gpu.json].")
@click.option("--tiny", is_flag=True, help="Small shapes, on the CPU if there is no GPU, into build/gpu-tiny.json.")
@click.option(
    "--report",
    is_flag=True,
    help="Measure nothing; write docs/benchmarks.md from benchmarks/results/gpu.json, or from --out.",
)
@click.option("--docs", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "docs", hidden=True)
def main(parts: tuple[str, ...], budget: float, out: Path | None, tiny: bool, report: bool, docs: Path) -> None:
    """Time and memory of both phases at full size on this GPU.

    Example: python -m benchmarks.gpu --only loss,step
    """
    if report:
        _report(out or ROOT / "benchmarks" / "results" / "gpu.json", docs)
        return
    out = out or ROOT / "build" / ("gpu-tiny.json" if tiny else "gpu.json")
    board = Board(budget, out, {})
    from benchmarks.gpu.machine import facts, ready  # torch takes seconds: the budget includes them

    device = ready(tiny=tiny)
    board.facts |= facts(device) | {"tiny": tiny}
    if out.is_file():
        try:
            board.adopt(out)
        except ValueError as error:
            if parts != PARTS:
                raise click.UsageError(f"{error}; give another --out, or measure all parts") from None
    for name, value in board.facts.items():
        click.echo(f"{name}: {value}")
    from benchmarks.gpu.setting import Setting
    from benchmarks.gpu.sizes import FULL, TINY

    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(board=board, sizes=TINY if tiny else FULL, device=device, directory=Path(directory))
        for part in parts:
            board.runs[part] = {
                "date": datetime.now(UTC).date().isoformat(),
                "commit": commit(),
                "command": " ".join(sys.argv[1:]),
            }
            try:
                importlib.import_module(f"benchmarks.gpu.{part}").run(setting)
            except Exception as error:  # noqa: BLE001 the next part still runs
                board.fail(part, "preparation", error)
    click.echo(f"\n{board.table()}\n\n{board.budget - board.left:.0f} s in all; rows in {out}")
    sys.exit(1 if board.failed else 0)


def _report(out: Path, docs: Path) -> None:
    from benchmarks.gpu.page import PAGE, read_board, write_page  # imports torch

    try:
        write_page(read_board(out), docs)
    except (OSError, ValueError, KeyError) as error:
        raise click.UsageError(f"{out}: cannot be shown ({error!r}); measure first") from None
    click.echo(f"{docs / PAGE}")


if __name__ == "__main__":
    main()
