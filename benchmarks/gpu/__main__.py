"""Everything that a GPU decides, at full size, in about five minutes; see benchmarks/README.md.

    python -m benchmarks.gpu [--only loss,step,dump,answers,cost --budget 330 --out build/gpu.json]
    python -m benchmarks.gpu --tiny          # the whole script in small, on a CPU as well

Models have the shapes of Qwen2-VL-7B and -2B and random weights, made on the device: nothing is downloaded. A part that
fails is a row, the next ones still run, and the exit code is 1.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.gpu.board import Board

PARTS = ("loss", "step", "dump", "answers", "cost")
"""In order of value. Each is a module beside this one."""


def _parse_parts(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else PARTS
    for name in names:
        if name not in PARTS:
            raise click.BadParameter(f"{name!r} is not a part; the parts are {', '.join(PARTS)}")
    return names


@click.command()
@click.option(
    "--only", "parts", callback=_parse_parts, help=f"Parts to run, with commas between; all: {','.join(PARTS)}."
)
@click.option("--budget", default=330.0, show_default=True, help="Seconds; what does not fit any more is skipped.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/gpu.json"), show_default=True)
@click.option("--tiny", is_flag=True, help="Small shapes, on the CPU where there is no GPU.")
def main(parts: tuple[str, ...], budget: float, out: Path, tiny: bool) -> None:
    """Time and memory of both phases at full size on this GPU.

    Example: python -m benchmarks.gpu --only loss,step --out build/gpu.json
    """
    board = Board(budget, out, {})
    from benchmarks.gpu.machine import facts, ready  # torch takes seconds: the budget includes them

    device = ready(tiny=tiny)
    board.facts |= facts(device) | {"tiny": tiny}
    for name, value in board.facts.items():
        click.echo(f"{name}: {value}")
    from benchmarks.gpu.setting import Setting
    from benchmarks.gpu.sizes import FULL, TINY

    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(board=board, sizes=TINY if tiny else FULL, device=device, directory=Path(directory))
        for part in parts:
            try:
                importlib.import_module(f"benchmarks.gpu.{part}").run(setting)
            except Exception as error:  # noqa: BLE001 the next part still runs
                board.fail(part, "preparation", error)
    click.echo(f"\n{board.table()}\n\n{board.budget - board.left:.0f} s in all; rows in {out}")
    sys.exit(1 if board.failed else 0)


if __name__ == "__main__":
    main()
