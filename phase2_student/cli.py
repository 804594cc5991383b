"""`fs-student`: the commands of phase 2. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

import json
import os
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
@click.option("--online", is_flag=True, help="Keep the teacher in memory: its whole distribution, and no cache.")
@click.option("--overwrite", is_flag=True, help="Delete the run that is in training.output_dir, and begin anew.")
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def train(config: Path, overrides: tuple[str, ...], online: bool, overwrite: bool, progress: bool) -> None:
    """Train the student on the cache; the teacher is not needed.

    With --online there is no cache: the teacher runs beside the student in every step, at the price of its memory and time.

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

    plan = prepare(recipe, online=online, progress=progress)
    main_process = plan.arguments.process_index == 0
    if main_process:
        click.echo(
            f"Student {recipe.student.model}, {len(plan.train):,} samples, T = {recipe.loss.temperature:g}, "
            f"alpha = {recipe.loss.alpha:g}{', the teacher in memory' if online else ''}; {precision(plan)}"
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


@main.command()
@config_option
@set_option
@click.option(
    "--grid",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE,...",
    help="A key of the recipe and its values; several of them are combined. temperature, alpha and tail are those of loss.",
)
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
def sweep(config: Path, overrides: tuple[str, ...], grid: tuple[str, ...], progress: bool) -> None:
    """Train a grid of runs from one cache, one after the other.

    Each run has a directory below training.output_dir, named by its settings, and is what fs-student train would leave.
    Give the same command again after an interruption: finished runs are left alone, the others go on. A run that fails is
    reported (error.txt in its directory), the rest go on, and the exit code is 1.

    Example: fs-student sweep --config recipe.yaml --grid temperature=1.5,2,3 --grid alpha=0.5,0.7
    """
    from firstsight.samples import check_files

    recipe = load_recipe(config, overrides)
    check_files(recipe.file("train"), recipe.data_root)
    check_files(recipe.file("validation"), recipe.data_root)

    from phase2_student.compare import comparison_text, read_run
    from phase2_student.sweep import Outcome, grid_runs
    from phase2_student.sweep import sweep as run

    runs = grid_runs(config, overrides, grid)
    main_process = os.environ.get("RANK", "0") == "0"

    def report(number: int, outcome: Outcome) -> None:
        if main_process:
            click.echo(f"[{number}/{len(runs)}] {outcome.run.name}: {outcome.text}", err=outcome.result is None)

    if main_process:
        click.echo(f"{len(runs)} runs below {recipe.output_dir}")
    outcomes = run(runs, progress=progress, report=report)
    done = [outcome.run.recipe.output_dir for outcome in outcomes if outcome.result is not None]
    if main_process and done:
        click.echo(f"\n{comparison_text([read_run(directory) for directory in done])}")
    if outcomes[-1].result is not None and not outcomes[-1].result.finished:
        raise click.exceptions.Exit(143)
    if len(done) < len(outcomes):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the validation curves as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(directories: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Show runs side by side: the settings that differ, losses and agreement on validation, exact match, time.

    DIR is the directory of a run, or of a sweep. Exact match stands where fs-student eval has left an evaluation in the run.

    Example: fs-student compare runs/sweep --plot sweep.png
    """
    from phase2_student.compare import comparison, comparison_text, find_runs, read_run

    records = [read_run(directory) for directory in find_runs(directories)]
    click.echo(json.dumps(comparison(records), indent=2) if as_json else comparison_text(records))
    if plot is not None:
        from phase2_student.compare_plot import plot_runs

        plot_runs(records, plot)
        click.echo(f"Validation curves: {plot}", err=as_json)


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
