"""`fs-teacher`: the commands of phase 1. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

from pathlib import Path

import click

from firstsight.console import Commands, config_option, set_option
from firstsight.recipe import check_training, load_recipe


@click.group(cls=Commands)
@click.version_option(package_name="firstsight")
def main() -> None:
    """Phase 1: run the frozen teacher once and keep its soft targets.

    Example: fs-teacher dump --config recipe.yaml
    """


@main.command()
@config_option
@set_option
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def dump(config: Path, overrides: tuple[str, ...], progress: bool) -> None:
    """Write the teacher's top-k soft targets for every sample that the cache does not hold.

    Interrupt it as you like: what is committed stays, and the same command goes on with the rest.

    Example: fs-teacher dump --config recipe.yaml --set cache.top_k=32
    """
    from firstsight.samples import check_files

    recipe = load_recipe(config, overrides)
    check_files(recipe.file("train"), recipe.data_root)
    check_files(recipe.file("validation"), recipe.data_root)
    check_training(recipe.training)

    from phase1_teacher.dump import dump as run
    from phase1_teacher.dump import prepare
    from phase1_teacher.summary import summary_text

    job = prepare(recipe, progress=progress)
    if not job.pending:
        click.echo(f"Nothing to do: {recipe.cache_location} holds all {len(job.samples):,} samples of this recipe.")
    else:
        click.echo(f"Teacher {recipe.teacher.model} ({recipe.teacher.quantization}) -> {recipe.cache_location}")
    click.echo(summary_text(recipe.cache_location, run(job, progress=progress)))
