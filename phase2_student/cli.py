"""`fs-student`: the commands of phase 2. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

from pathlib import Path

import click

from firstsight.console import Commands, config_option, set_option
from firstsight.recipe import load_recipe


@click.group(cls=Commands)
@click.version_option(package_name="firstsight")
def main() -> None:
    """Phase 2: train and evaluate the student on the cached soft targets.

    Example: fs-student train --config recipe.yaml
    """


@main.command()
@config_option
@set_option
@click.option("--overwrite", is_flag=True, help="Delete the run that is in training.output_dir, and begin anew.")
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def train(config: Path, overrides: tuple[str, ...], overwrite: bool, progress: bool) -> None:
    """Train the student on the cache; the teacher is not needed.

    Continues from the newest whole checkpoint in training.output_dir where there is one; checkpoints that were
    interrupted or damaged are passed over. A finished run is left alone; the run of another recipe is refused. Leaves
    there best/ (by validation loss), final/, training_history.json, recipe.yaml and run.json. SIGTERM saves a
    checkpoint and stops.

    Example: fs-student train --config recipe.yaml --set loss.temperature=3 --set training.output_dir=runs/t3
    """
    from firstsight.samples import check_files

    recipe = load_recipe(config, overrides)
    check_files(recipe.file("train"), recipe.data_root)
    check_files(recipe.file("validation"), recipe.data_root)

    from phase2_student.train import precision, prepare
    from phase2_student.train import train as run

    plan = prepare(recipe, progress=progress)
    main_process = plan.arguments.process_index == 0
    if main_process:
        click.echo(
            f"Student {recipe.student.model}, {len(plan.train):,} samples, T = {recipe.loss.temperature:g}, "
            f"alpha = {recipe.loss.alpha:g}; {precision(plan)}"
        )
    result = run(plan, overwrite=overwrite)
    if not result.finished:
        click.echo(
            f"Stopped by SIGTERM after step {result.steps:,}, with a checkpoint; the same command goes on.", err=True
        )
        raise click.exceptions.Exit(143)
    if main_process and result.seconds == 0:
        click.echo(f"{result.output_dir} is finished: {result.steps:,} steps; --overwrite begins anew")
    elif main_process:
        click.echo(
            f"{result.steps:,} steps in {result.seconds:.0f} s, best validation loss {result.best_validation_loss:.4f}: "
            f"{result.output_dir / 'best'} and {result.output_dir / 'final'}"
        )


@main.command(name="eval")
@config_option
@set_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[=DIR]",
    help="teacher, base, student (training.output_dir/best), or NAME=DIR; default: teacher, base and student.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate only the first samples.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Default: training.output_dir/evaluation."
)
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def evaluate(
    config: Path,
    overrides: tuple[str, ...],
    models: tuple[str, ...],
    limit: int | None,
    output: Path | None,
    progress: bool,
) -> None:
    """Measure teacher and students side by side on the validation file.

    Example: fs-student eval --config recipe.yaml --model teacher --model base --model hard=runs/hard/best
    """
    from firstsight.samples import check_files

    recipe = load_recipe(config, overrides)
    check_files(recipe.file("validation"), recipe.data_root)

    from phase2_student.evaluate import evaluate as run
    from phase2_student.evaluate import parse_candidates
    from phase2_student.summary import summary_text, write_evaluation

    candidates = parse_candidates(recipe, models or ("teacher", "base", "student"))
    evaluation = run(recipe, candidates, limit=limit, progress=progress)
    directory = output or recipe.output_dir / "evaluation"
    path = write_evaluation(evaluation, directory)
    click.echo(summary_text(evaluation))
    click.echo(f"\nPer sample: {path}")
