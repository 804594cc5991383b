"""Everything that a CPU can measure, as ratios side by side, in less than forty minutes on two cores: `make bench`.

    python -m benchmarks [--only step --only loss]
    python -m benchmarks --report              # measures nothing; writes the page again
    python -m benchmarks --quick               # every part at a small size, in minutes; the figures mean nothing

Each part runs in a process of its own, one after the other. Its results replace those of its last run in
benchmarks/results/bench.json; docs/benchmarks.md and its picture are written from that file. A part that fails is reported, the
next ones still run, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click
from pydantic import ValidationError

from benchmarks.machine import commit, cores, cpu, versions
from benchmarks.suite.page import check_section, draw, page_text, write_section
from benchmarks.suite.parts import PARTS
from benchmarks.suite.result import PartRun, Suite, text_table
from firstsight.console import HEARTBEAT

ROOT = Path(__file__).parents[1]
COMMAND = "make bench"
PAGE = "benchmarks.md"
PICTURE = "benchmarks.png"
_PACKAGES = ("torch", "transformers", "numpy", "zarr", "numcodecs", "accelerate", "datasets", "trl", "liger-kernel")


def facts() -> dict[str, str]:
    """Machine and versions."""
    return {
        "cores": str(cores()),
        "CPU": cpu(),
        "Python": platform.python_version(),
        **versions(_PACKAGES),
    }


class PartFailed(Exception):
    """A part ended with an error, and its output."""


def run_part(name: str, *, quick: bool) -> PartRun:
    """Run a part in a process of its own, with a line a minute until it is done. PartFailed."""
    begin = time.monotonic()
    load, date, measured = os.getloadavg()[0], datetime.now(UTC).date().isoformat(), commit()
    with tempfile.TemporaryDirectory() as directory:
        out, log = Path(directory, "out.json"), Path(directory, "log.txt")
        command = [sys.executable, "-m", "benchmarks.suite.child", name, str(out), *(["--quick"] if quick else [])]
        with log.open("w", encoding="utf-8") as sink:
            child = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True)
            try:
                _wait(child, name, begin)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # with the processes that it started
                child.wait()
                raise
        if child.returncode or not out.is_file():
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise PartFailed(f"exit code {child.returncode}\n{text[-4000:]}")
        found = out.read_bytes()
    header = {"part": name, "date": date, "commit": measured, "quick": quick, "facts": facts(), "load": load}
    return PartRun.model_validate(header | json.loads(found))


def _wait(child: subprocess.Popen[bytes], name: str, begin: float) -> None:
    while True:
        try:
            child.wait(timeout=HEARTBEAT)
        except subprocess.TimeoutExpired:
            click.echo(
                f"{name}: {time.monotonic() - begin:,.0f} s so far, about {PARTS[name].about:,} s in all", err=True
            )
        else:
            return


@click.command()
@click.option(
    "--only",
    "parts",
    multiple=True,
    type=click.Choice(list(PARTS)),
    help="A part; may be given several times. Default: all.",
)
@click.option("--quick", is_flag=True, help="Test sizes, into build/bench: only shows that every part runs.")
@click.option("--report", is_flag=True, help="Measure nothing; write the page from the results so far.")
@click.option("--results", "path", type=click.Path(path_type=Path, dir_okay=False), help="The JSON file of results.")
@click.option(
    "--docs", type=click.Path(path_type=Path, file_okay=False), help="Where benchmarks.md and its picture go."
)
def main(parts: tuple[str, ...], quick: bool, report: bool, path: Path | None, docs: Path | None) -> None:
    """Measure everything that a CPU can, as ratios.

    Example: python -m benchmarks --only step --only loss
    """
    home = ROOT / "build" / "bench" if quick else None
    path = path or (home or ROOT / "benchmarks" / "results") / "bench.json"
    docs = docs or home or ROOT / "docs"
    try:
        suite = Suite.read(path)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise click.UsageError(f"{path}: not a file of results ({place}: {first['msg']}); move it away") from None
    if any(run.quick != quick for run in suite.parts.values()):
        kind = "sizes of a test" if not quick else "real sizes"
        raise click.UsageError(f"{path} holds results of {kind}; give another file with --results")
    try:
        check_section(docs / PAGE, COMMAND)  # before anything is measured
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if report:
        if not suite.parts:
            raise click.UsageError(f"{path}: no results yet; run the benchmarks first")
        _write_page(suite, docs)
        return
    chosen = [name for name in PARTS if not parts or name in parts]
    if not quick:
        click.echo(f"{len(chosen)} parts, about {sum(PARTS[name].about for name in chosen) / 60:.0f} minutes in all")
    failed = []
    for name in chosen:
        click.echo(f"\n{PARTS[name].title} ({name})")
        try:
            run = run_part(name, quick=quick)
        except PartFailed as error:
            failed.append(name)
            click.echo(f"{name}: {error}", err=True)
            continue
        click.echo(text_table([*run.results, *run.skipped]))
        click.echo(f"{run.seconds:,.0f} s, at most {run.peak_mb:,.0f} MB")
        suite = suite.with_part(run, list(PARTS))
        suite.write(path)
        _write_page(suite, docs)
    click.echo(f"\nresults: {path}; page: {docs / 'benchmarks.md'}")
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        sys.exit(1)


def _write_page(suite: Suite, docs: Path) -> None:
    draw(suite, docs / PICTURE)
    write_section(docs / PAGE, COMMAND, page_text(suite, PICTURE))


if __name__ == "__main__":
    main()
