"""Eight runs on one cache against eight runs with the teacher in memory: the total time, the dump counted once.

    python -m benchmarks.sweep DIR [--minutes 6]

Give the command again until nothing is left to do; finished runs are not repeated. All runs share one process, so neither side
pays for imports, and both kinds take turns.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import torch

from benchmarks.fidelity import ensure_cache
from benchmarks.pair import Deadline, place_pair
from phase2_student.runs.files import write_json
from phase2_student.training.prepare import Plan, prepare
from phase2_student.training.sweep import SweepRun, grid_runs
from phase2_student.training.train import train

GRID = ("temperature=1.5,3", "alpha=0.5,0.9", "training.learning_rate=5e-4,1e-3")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--minutes", default=6.0, show_default=True, help="Begin no run that would end later than this.")
@click.option("--train", "train_samples", default=1400, show_default=True)
@click.option("--validation", default=140, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option(
    "--models",
    type=click.Path(path_type=Path, exists=True),
    help="Directory with teacher/ and student/ of another pair.",
)
@click.option("--threads", default=2, show_default=True)
def main(
    directory: Path,
    minutes: float,
    train_samples: int,
    validation: int,
    epochs: int,
    batch: int,
    models: Path | None,
    threads: int,
) -> None:
    """Time a sweep on one cache against the same runs online.

    Example: python -m benchmarks.sweep build/sweep
    """
    torch.set_num_threads(threads)
    deadline = Deadline(minutes)
    recipe = place_pair(
        directory,
        train=train_samples,
        validation=validation,
        epochs=epochs,
        batch=batch,
        learning_rate=1e-3,
        models=models,
    )
    config = directory / "recipe.yaml"
    runs = {kind: grid_runs(config, [f"training.output_dir=runs/{kind}"], GRID) for kind in ("cached", "online")}
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
                click.echo("not finished: give the command again")
                return
            if kind not in plans:
                begin = time.perf_counter()
                plans[kind] = prepare(run.recipe, online=kind == "online", progress=False)
                if f"prepare {kind}" not in seconds:
                    timed(f"prepare {kind}", begin)
            begin = time.perf_counter()
            train(prepare(run.recipe, online=kind == "online", progress=False, like=plans[kind]), overwrite=True)
            timed(name, begin)
    totals = {
        kind: [value for name, value in seconds.items() if name.startswith(f"{kind} ")] for kind in ("cached", "online")
    }
    cached = seconds["dump"] + seconds["prepare cached"] + sum(totals["cached"])
    online = seconds["prepare online"] + sum(totals["online"])
    click.echo(f"{len(runs['cached'])} runs of {epochs} epochs of {train_samples:,} samples, {threads} threads")
    click.echo(
        f"on one cache  {cached:8.1f} s: dump {seconds['dump']:.1f}, preparation {seconds['prepare cached']:.1f}, runs "
        f"{sum(totals['cached']):.1f} (median {statistics.median(totals['cached']):.1f})"
    )
    click.echo(
        f"online        {online:8.1f} s: preparation {seconds['prepare online']:.1f}, runs {sum(totals['online']):.1f} "
        f"(median {statistics.median(totals['online']):.1f})"
    )
    click.echo(f"online / cached {online / cached:.2f}")


if __name__ == "__main__":
    main()
