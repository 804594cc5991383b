"""`fs-teacher`: the commands of phase 1. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from firstsight.console import Commands, config_option, set_option
from firstsight.recipe import Recipe, check_training, load_recipe
from phase1_teacher.store_commands import gc, status, verify
from phase1_teacher.workers import Share, Stopped, parse_share, share_from_environment, stop_on_signals


@click.group(cls=Commands)
@click.version_option(package_name="firstsight")
def main() -> None:
    """Phase 1: run the frozen teacher once and keep its soft targets.

    Example: fs-teacher dump --config recipe.yaml
    """


@main.command()
@config_option
@set_option
@click.option(
    "--shard",
    metavar="I/N",
    help="Begin with the I-th of N shares, from 0; default: what torchrun or Slurm says, else 0/1.",
)
@click.option(
    "--check-quantization",
    is_flag=True,
    help="Load the unquantised teacher as well and report how far both agree; takes memory for both.",
)
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def dump(config: Path, overrides: tuple[str, ...], shard: str | None, check_quantization: bool, progress: bool) -> None:
    """Write the teacher's top-k soft targets for every sample that the cache does not hold.

    Interrupt it as you like: what is committed stays, and the same command goes on with the rest. Any number of
    these processes may work on one cache: each begins with its share and then takes whatever is not committed.
    SIGTERM, SIGUSR1: commit or drop the unit in hand and leave within ten seconds, exit code 143.

    Example: fs-teacher dump --config recipe.yaml --set cache.top_k=32
    Example: torchrun --nproc-per-node 8 --no-python fs-teacher dump --config recipe.yaml
    """
    from firstsight.samples import check_files

    share = parse_share(shard) if shard else share_from_environment(os.environ)
    recipe = load_recipe(config, overrides)
    check_files(recipe.file("train"), recipe.data_root)
    check_files(recipe.file("validation"), recipe.data_root)
    check_training(recipe.training)
    try:
        with stop_on_signals():
            _dump(recipe, share, check_quantization, progress)
    except Stopped as stopped:
        click.echo(f"stopped by {stopped}; what is committed stays, the same command goes on with the rest", err=True)
        sys.exit(stopped.exit_code)


def _dump(recipe: Recipe, share: Share, check_quantization: bool, progress: bool) -> None:
    from phase1_teacher.dump import dump as run
    from phase1_teacher.dump import prepare
    from phase1_teacher.summary import summary_text

    job = prepare(recipe, progress=progress)
    if not job.pending:
        click.echo(f"Nothing to do: {recipe.cache_location} holds all {len(job.samples):,} samples of this recipe.")
    else:
        worker = f", worker {share}" if share.count > 1 else ""
        click.echo(f"Teacher {recipe.teacher.model} ({recipe.teacher.quantization}) -> {recipe.cache_location}{worker}")
    summary = run(job, share=share, check_quantization=check_quantization, progress=progress)
    click.echo(summary_text(recipe.cache_location, summary))


for command in (status, verify, gc):
    main.add_command(command)
