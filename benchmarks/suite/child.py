"""Measures one part of the suite in this process and writes its outcomes as JSON; `python -m benchmarks` starts it for each part.

python -m benchmarks.suite.child step build/step.json [--quick]
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

import click

from benchmarks.machine import children_peak_mb, peak_mb
from benchmarks.suite.parts import PARTS
from benchmarks.suite.result import Outcome, Result, text_table


@click.command()
@click.argument("part", type=click.Choice(list(PARTS)))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--quick", is_flag=True, help="Test sizes.")
def main(part: str, out: Path, quick: bool) -> None:
    """Measure one part.

    Example: python -m benchmarks.suite.child step build/step.json
    """
    begin = time.perf_counter()
    outcomes: list[Outcome] = importlib.import_module(PARTS[part].module).results(quick=quick)
    click.echo(text_table(outcomes))
    content = {
        "seconds": time.perf_counter() - begin,
        "peak_mb": max(peak_mb(), children_peak_mb()),
        "results": [each.model_dump() for each in outcomes if isinstance(each, Result)],
        "skipped": [each.model_dump() for each in outcomes if not isinstance(each, Result)],
    }
    out.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
