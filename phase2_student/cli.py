"""`fs-student`: the commands of phase 2. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from signal import SIGTERM
from typing import Literal

import click

from firstsight.console import Commands, config_option, progress_option, set_option
from firstsight.recipe import Recipe, check_training, load_recipe
from phase2_student.report_commands import publish, report
from storage.wording import counted


@click.group(cls=Commands, several=("train", "sweep"))
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
@progress_option
def train(config: Path, overrides: tuple[str, ...], online: bool, overwrite: bool, progress: bool) -> None:
    """Train the student on the cache; the teacher is not needed.

    With --online there is no cache: the teacher runs beside the student in every step, at the price of its memory and time.

    Continues from the newest whole checkpoint in training.output_dir where there is one; checkpoints that were
    interrupted or damaged are passed over. A finished run is left alone; the run of another recipe is refused. Leaves
    there best/ (by validation loss; none with training.eval_strategy: "no"), final/ (the last), training_history.json,
    recipe.yaml, run.json and run.log. One process owns the directory: another one that begins there is refused with the
    owner's name. SIGTERM and Ctrl-C save a checkpoint and stop, a second Ctrl-C stops at once; where there is no terminal, a
    line a minute says how far it is. A loss or a gradient that is not finite stops before it is trained on.

    Example: fs-student train --config recipe.yaml --set loss.temperature=3 --set training.output_dir=runs/t3
    """
    recipe = _checked_recipe(config, overrides)

    from phase2_student.training.arguments import validation_note
    from phase2_student.training.prepare import prepare
    from phase2_student.training.train import train as run

    plan = prepare(recipe, online=online, progress=progress)
    main_process = plan.arguments.process_index == 0
    if main_process:
        click.echo(
            f"Student {recipe.student.model}, {counted(len(plan.train), 'sample')}{plan.source.note and f', {plan.source.note}'}; "
            f"{plan.objective_text}; {plan.precision}" + (f"; {note}" if (note := validation_note(recipe)) else "")
        )
        if plan.skipped:
            click.echo(plan.skipped_text, err=True)
        if plan.unlearned_text:
            click.echo(plan.unlearned_text)
    result = run(plan, overwrite=overwrite)
    if not result.finished:
        click.echo(f"{result.stopped_text[0].upper()}{result.stopped_text[1:]}.", err=True)
        raise click.exceptions.Exit(128 + (result.signal or SIGTERM))
    if main_process and result.seconds == 0:
        click.echo(
            f"{result.output_dir} is finished: {counted(result.steps, 'step')}; --overwrite begins anew ({result.best_text})"
        )
    elif main_process:
        click.echo(
            f"{counted(result.steps, 'step')} in {result.seconds:.0f} s, {result.best_text}: {' and '.join(map(str, result.students))}"
        )


@main.command()
@config_option
@set_option
@click.option(
    "--grid",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE,...",
    help="A key of the recipe and its values; several of them are combined. The keys of loss need no section.",
)
@progress_option
def sweep(config: Path, overrides: tuple[str, ...], grid: tuple[str, ...], progress: bool) -> None:
    """Train a grid of runs from one cache, one after the other.

    Each run has a directory below training.output_dir, named by its settings, and is what fs-student train would leave.
    Give the same command again after an interruption: finished runs are left alone, the others continue. A run that fails is
    reported (error.txt in its directory), the rest are trained, and the exit code is 1.

    Example: fs-student sweep --config recipe.yaml --grid temperature=1.5,2,3 --grid alpha=0.5,0.7

    Example: fs-student sweep --config recipe.yaml --grid divergence=skewed_kl,js --grid beta=0.1,0.5
    """
    recipe = _checked_recipe(config, overrides)

    from phase2_student.report.run_table import run_table
    from phase2_student.runs.records import read_runs
    from phase2_student.training.sweep import Outcome, grid_runs
    from phase2_student.training.sweep import sweep as run

    runs = grid_runs(config, overrides, grid)
    main_process = os.environ.get("RANK", "0") == "0"

    def report(number: int, outcome: Outcome) -> None:
        if main_process:
            click.echo(f"[{number}/{len(runs)}] {outcome.run.name}: {outcome.text}", err=outcome.result is None)

    if main_process:
        click.echo(f"{counted(len(runs), 'run')} below {recipe.output_dir}")
    outcomes = run(runs, progress=progress, report=report)
    done = [outcome.run.recipe.output_dir for outcome in outcomes if outcome.result is not None]
    if main_process and done:
        click.echo(f"\n{run_table(read_runs(done))}")
    last = outcomes[-1].result
    if last is not None and not last.finished:
        raise click.exceptions.Exit(128 + (last.signal or SIGTERM))
    if len(done) < len(outcomes):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the validation curves as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(directories: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Show runs side by side: the settings that differ, losses and agreement on validation, exact match, time; * marks the best.

    DIR is the directory of a run, or of a sweep. Exact match stands where fs-student eval has left an evaluation in the run.

    Example: fs-student compare runs/sweep --plot sweep.png
    """
    from phase2_student.report.run_table import run_rows, run_table
    from phase2_student.runs.records import find_runs, read_runs

    runs = read_runs(find_runs(directories))
    click.echo(json.dumps([asdict(row) for row in run_rows(runs)], indent=2) if as_json else run_table(runs))
    if plot is not None:
        from phase2_student.report.run_plot import plot_runs

        plot_runs(runs, plot)
        click.echo(f"Validation curves: {plot}", err=as_json)


@main.command()
@config_option
@set_option
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="GPUs that share the work.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@progress_option
def plan(config: Path, overrides: tuple[str, ...], processes: int, as_json: bool, progress: bool) -> None:
    """Show what a training will take, before anything is loaded.

    Steps, tokens and padding, and the memory that each way to train takes on a GPU: float32 master weights, bfloat16
    weights with Kahan's remainder, LoRA; with gradient checkpointing and without. Needs the data and the student's
    configuration and tokenizer, neither weights nor cache.

    Example: fs-student plan --config recipe.yaml --set student.precision=bf16_kahan
    """
    recipe = load_recipe(config, overrides)
    recipe.model_source(recipe.student)
    check_training(recipe.training)

    from phase2_student.planning.plan import plan_json, plan_text, plan_training

    planned = plan_training(recipe, processes=processes, progress=progress and not as_json)
    click.echo(plan_json(planned) if as_json else plan_text(planned))


@main.command(name="eval")
@config_option
@set_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[=DIR]",
    help="teacher (as the recipe quantises it), teacher-bf16, base, student (training.output_dir/best, or final where "
    "nothing was validated), student-int8, student-nf4 (of fs-student export), or NAME=DIR; may be given several times. "
    "Default: teacher, base, student and what was exported of it.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate only the first samples.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Default: training.output_dir/evaluation."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Of the answers that are scored; LLM.int8 answers depend on it.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option("--timed", type=click.IntRange(min=1), default=16, show_default=True, help="Answers timed at batch 1.")
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=1, show_default=True, help="Of the answers timed at batch 1."
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Answers timed per batch size and per number of users, at least.",
)
@click.option("--fresh", is_flag=True, help="Measure again what an earlier evaluation measured already.")
@progress_option
def evaluate(
    config: Path,
    overrides: tuple[str, ...],
    models: tuple[str, ...],
    limit: int | None,
    output: Path | None,
    batch_size: int,
    max_new_tokens: int,
    timed: int,
    repetitions: int,
    requests: int,
    fresh: bool,
    progress: bool,
) -> None:
    """Measure teacher and students side by side on the validation file.

    A row of several answers is asked for each, given the true history before it. Without true answers it gives KL and agreement to
    the teacher of the cache, and latency. A student is asked with the image size and the system prompt of its own run; where models
    differ in them it is said. Samples that a model cannot take end it, or are left out and named with cache.on_error: skip.

    Each model's result is kept as soon as it is whole: an interrupted evaluation goes on, and a model whose weights, data and
    settings are the same is not measured again. Leaves evaluation_<timestamp>.json, with every sample, and
    evaluation_summary.txt.

    Example: fs-student eval --config recipe.yaml --model teacher --model base --model hard=runs/hard/best
    """
    from firstsight.data.samples import check_files

    recipe = load_recipe(config, overrides)
    check_files([recipe.source("validation")])

    from firstsight.models.loading import hide_bars
    from phase2_student.evaluation.candidates import default_names, parse_candidates
    from phase2_student.evaluation.evaluate import Settings
    from phase2_student.evaluation.evaluate import evaluate as run
    from phase2_student.evaluation.files import write_evaluation
    from phase2_student.evaluation.measure.timing import Timing
    from phase2_student.evaluation.summary import summary_text

    if not progress:
        hide_bars()
    candidates = parse_candidates(recipe, models or default_names(recipe))
    directory = output or recipe.output_dir / "evaluation"
    evaluation = run(
        recipe,
        candidates,
        directory=directory,
        limit=limit,
        settings=Settings(
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            timing=Timing(timed=timed, repetitions=repetitions, requests=requests),
        ),
        fresh=fresh,
        progress=progress,
        report=lambda line: click.echo(line, err=True),
    )
    path = write_evaluation(evaluation, directory)
    click.echo(summary_text(evaluation))
    click.echo(f"\nPer sample: {path}")


@main.command(name="export")
@click.option("--int8", is_flag=True, help="LLM.int8: a byte per weight of the linear layers.")
@click.option("--nf4", is_flag=True, help="NF4, double quantisation: about half a byte.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Export the recipe's best student.")
@set_option
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the student; default: training.output_dir/best, or final where nothing was validated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Default: beside the student, called like it with -int8 or -nf4 behind; for one of the two kinds.",
)
@click.option("--dry-run", is_flag=True, help="Only say how large the weights would be, from the configuration.")
def export(
    int8: bool,
    nf4: bool,
    config: Path | None,
    overrides: tuple[str, ...],
    model: Path | None,
    output: Path | None,
    dry_run: bool,
) -> None:
    """Quantise a student with bitsandbytes into a directory that from_pretrained loads; runs on a CPU too.

    Example: fs-student export --int8 --nf4 --config recipe.yaml
    """
    if not (int8 or nf4):
        raise click.UsageError("say how to quantise: --int8, --nf4 or both")
    if int8 and nf4 and output is not None:
        raise click.UsageError(
            "--output is one directory: give it with --int8 or --nf4 alone, or let both go beside the student"
        )
    if config is None and model is None:
        raise click.UsageError("say which student: --config RECIPE or --model DIR")
    if config is None and overrides:
        raise click.UsageError("--set overrides a key of a recipe; give its --config")
    kinds: list[Literal["int8", "nf4"]] = [*(("int8",) if int8 else ()), *(("nf4",) if nf4 else ())]
    recipe = load_recipe(config, overrides) if config is not None else None

    from firstsight.recipe import StudentSection
    from phase2_student.release.export import export as run
    from phase2_student.release.export import plan_export
    from phase2_student.runs.best import trained_student

    source = model or (trained_student(recipe.output_dir) if recipe else Path())
    section = recipe.student if recipe else StudentSection()
    places = [output or Path(f"{os.path.abspath(source)}-{kind}") for kind in kinds]
    for kind, place in zip(kinds, places, strict=True):
        plan_export(source, place, section, kind)  # refused before the first is written
    for kind, place in zip(kinds, places, strict=True):
        result = (plan_export if dry_run else run)(source, place, section, kind)
        size = result.paper_bytes if result.bytes is None else result.bytes
        click.echo(
            f"{result.directory}: {kind}, {'would be about ' if dry_run else ''}{size / 1e9:,.3f} GB of weights, "
            f"{result.before_bytes / size:.1f} times less than {result.before_bytes / 1e9:,.3f} GB"
        )


@main.command()
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of a student: training.output_dir/best, or an export of it.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Several: frames in order.",
)
@click.option("--system", metavar="TEXT", help="System prompt; default: that of the student's run.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="Scale images down to at most this many pixels; default: as in the student's run.",
)
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
@click.argument("question")
def ask(
    model: Path,
    images: tuple[Path, ...],
    system: str | None,
    max_new_tokens: int,
    max_pixels: int | None,
    stream: bool,
    question: str,
) -> None:
    """Ask a student about one or several images.

    Example: fs-student ask --model runs/reference/best --image a.jpg "what am I holding?"
    """
    from firstsight.recipe import StudentSection
    from phase2_student.evaluation.ask import LoadedStudent

    student = LoadedStudent(model, StudentSection(max_pixels=max_pixels), system_prompt=system)
    emit = (lambda text: click.echo(text, nl=False)) if stream else None
    answer = student.ask(question, images, max_new_tokens=max_new_tokens, emit=emit)
    click.echo("" if stream else answer.text)
    click.echo(f"\n{answer.timing()}; {student.description}", err=True)


for command in (report, publish):
    main.add_command(command)


def _checked_recipe(config: Path, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a training: what is wrong with it is said before torch is imported, keys of `training` soon after."""
    from firstsight.data.samples import check_files

    recipe = load_recipe(config, overrides)
    recipe.model_source(recipe.student)
    check_files(recipe.sources())
    check_training(recipe.training)
    return recipe
