"""Eight runs on one cache against eight runs with the teacher in memory: the total time, with the dump counted once.

    python -m benchmarks.sweep DIR [--minutes 6]

Repeat the command until nothing is left to do; finished runs are not repeated. All runs share one process, so neither side
pays for imports, and both kinds take turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.fidelity import ensure_cache
from benchmarks.pair import Deadline, place_pair
from benchmarks.suite.result import Outcome, compared, text_table
from phase2_student.runs.files import write_json
from phase2_student.training.prepare import Plan, prepare
from phase2_student.training.sweep import SweepRun, grid_runs
from phase2_student.training.train import train

GRID = ("temperature=1.5,3", "alpha=0.5,0.9", "training.learning_rate=5e-4,1e-3")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of all runs."""

    train: int = 1400
    validation: int = 140
    epochs: int = 2
    batch: int = 16
    grid: tuple[str, ...] = GRID
    models: Path | None = None
    """Directory with teacher/ and student/ of another pair."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds by name: `dump`, and for each kind its preparation and its runs."""

    seconds: dict[str, float]

    def runs(self, kind: str) -> list[float]:
        """Seconds of the runs of a kind, `cached` or `online`."""
        return [value for name, value in self.seconds.items() if name.startswith(f"{kind} ")]

    def results(self) -> list[Outcome]:
        """The ratios."""
        cached, online = self.runs("cached"), self.runs("online")
        whole = [self.seconds["dump"] + self.seconds["prepare cached"] + sum(cached)]
        with_teacher = [self.seconds["prepare online"] + sum(online)]
        count = f"{len(cached)} runs of the miniature pair"
        return [
            compared(
                "sweep.time.all",
                f"{count} with the teacher in memory",
                "all on one cache, its dump counted",
                mine=with_teacher,
                theirs=whole,
                unit="s",
            ),
            compared(
                "sweep.time.run",
                "a run with the teacher in memory",
                "the same on the cache",
                mine=online,
                theirs=cached,
                unit="s",
            ),
        ]


def measure(directory: Path, settings: Settings, minutes: float | None = None) -> Measured | None:
    """Do the dump and the runs that are still missing; None if the time was up before all were done."""
    deadline = Deadline(minutes if minutes is not None else 10**6)
    recipe = place_pair(
        directory,
        train=settings.train,
        validation=settings.validation,
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=1e-3,
        models=settings.models,
    )
    config = directory / "recipe.yaml"
    runs = {
        kind: grid_runs(config, [f"training.output_dir=runs/{kind}"], settings.grid) for kind in ("cached", "online")
    }
    path = directory / "sweep.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def timed(name: str, begin: float) -> None:
        seconds[name] = time.perf_counter() - begin
        deadline.took(seconds[name])
        write_json(path, seconds)

    if "dump" not in seconds:
        begin = time.perf_counter()
        ensure_cache(recipe)
        timed("dump", begin)
    plans: dict[str, Plan] = {}
    for number in range(len(runs["cached"])):
        for kind in ("cached", "online") if number % 2 == 0 else ("online", "cached"):
            run: SweepRun = runs[kind][number]
            name = f"{kind} {run.name}"
            if name in seconds:
                continue
            if not deadline.allows():
                return None
            if kind not in plans:
                begin = time.perf_counter()
                plans[kind] = prepare(run.recipe, online=kind == "online", progress=False)
                if f"prepare {kind}" not in seconds:
                    timed(f"prepare {kind}", begin)
            begin = time.perf_counter()
            train(prepare(run.recipe, online=kind == "online", progress=False, like=plans[kind]), overwrite=True)
            timed(name, begin)
    # runs in the order of the grid, whichever came first in its turn
    ordered = {name: seconds[name] for kind in runs for name in (f"{kind} {run.name}" for run in runs[kind])}
    return Measured(seconds={name: value for name, value in seconds.items() if name not in ordered} | ordered)


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part of `make bench`."""
    small = Settings(train=16, validation=8, epochs=1, batch=8, grid=("temperature=1.5,3",))
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), small if quick else Settings(train=500))
    assert found is not None  # there is no deadline
    return found.results()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--minutes", default=6.0, show_default=True, help="Begin no run that would end later than this.")
@click.option("--train", default=Settings.train, show_default=True)
@click.option("--validation", default=Settings.validation, show_default=True)
@click.option("--epochs", default=Settings.epochs, show_default=True)
@click.option("--batch", default=Settings.batch, show_default=True)
@click.option(
    "--models",
    type=click.Path(path_type=Path, exists=True),
    help="Directory with teacher/ and student/ of another pair.",
)
@click.option("--threads", default=2, show_default=True)
def main(directory: Path, minutes: float, threads: int, models: Path | None, **given: Any) -> None:
    """Time a sweep on one cache against the same runs online.

    Example: python -m benchmarks.sweep build/sweep
    """
    torch.set_num_threads(threads)
    settings = Settings(models=models, **given)
    found = measure(directory, settings, minutes)
    if found is None:
        click.echo("not finished: run the command again")
        return
    seconds = found.seconds
    click.echo(f"runs of {settings.epochs} epochs of {settings.train:,} samples, {threads} threads")
    for kind in ("cached", "online"):
        runs, dumped = found.runs(kind), f"dump {seconds['dump']:.1f}, " if kind == "cached" else ""
        click.echo(
            f"{kind}: {dumped}preparation {seconds[f'prepare {kind}']:.1f}, runs {sum(runs):.1f} s "
            f"(median {statistics.median(runs):.1f})"
        )
    click.echo(text_table(found.results()))


if __name__ == "__main__":
    main()
