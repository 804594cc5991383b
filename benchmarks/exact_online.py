"""Training from exact targets against the same training with the teacher in memory: losses step by step.

    python -m benchmarks.exact_online recipe.yaml DIRECTORY [--steps 100 --set training.per_device_train_batch_size=2]

The recipe's teacher dumps an exact cache into the directory, then both trainings run with the recipe's seed. In float32 the two differ
only by rounding: the dump's batches are not those of the training, so sums are taken in another order.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import yaml

from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train


def run_losses(recipe: Recipe, *, online: bool) -> tuple[list[float], float]:
    """The loss of every step, and the seconds of the training."""
    result = train(prepare(recipe, online=online), overwrite=True)
    state = json.loads(
        (recipe.output_dir / f"checkpoint-{result.steps}" / "trainer_state.json").read_text(encoding="utf-8")
    )
    return [row["loss"] for row in state["log_history"] if "loss" in row], result.seconds


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--steps", default=100, show_default=True)
@click.option("--set", "overrides", multiple=True, help="As for fs-student train.")
def main(config: Path, directory: Path, steps: int, overrides: tuple[str, ...]) -> None:
    """Dump exact targets, train on them and online, and print how far apart the losses are."""
    directory.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["cache"] = {"path": str(directory.resolve() / "exact.zarr"), "targets": "exact"}
    content.setdefault("loss", {}).pop("tail", None)
    content["training"] = content.get("training", {}) | {
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": steps,
        "eval_strategy": "steps",
        "eval_steps": steps,
        "report_to": "none",
    }
    path = config.parent / f".{config.stem}-exact.yaml"  # next to the recipe, since its paths are relative
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        begin = time.perf_counter()
        summary = dump(prepare_dump(load_recipe(path, overrides)))
        click.echo(f"exact dump: {summary.positions:,} positions in {time.perf_counter() - begin:.0f} s")
        found = {
            name: run_losses(
                load_recipe(path, [*overrides, f"training.output_dir={directory.resolve() / name}"]),
                online=name == "online",
            )
            for name in ("exact", "online")
        }
    finally:
        path.unlink()
    (one, exact_seconds), (two, online_seconds) = found["exact"], found["online"]
    apart = [abs(a - b) / abs(b) for a, b in zip(one, two, strict=True)]
    click.echo(
        f"{len(apart)} steps: loss {two[0]:.4f} to {two[-1]:.4f}; largest relative difference {max(apart):.2e}, mean "
        f"{sum(apart) / len(apart):.2e}; {exact_seconds:.0f} s from the cache, {online_seconds:.0f} s with the teacher"
    )


if __name__ == "__main__":
    main()
