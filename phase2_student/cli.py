"""`fs-student`: the commands of phase 2. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGTERM
from typing import Literal

import click
from click.core import ParameterSource

from firstsight.console import Commands, config_option, progress_option, set_option, time_text
from firstsight.models.gpus import bytes_text
from firstsight.recipe import Recipe, check_training, load_recipe
from phase2_student.report_commands import compare, publish, report
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
@click.option("--online", is_flag=True, help="Use the teacher in memory instead of a cache.")
@click.option("--overwrite", is_flag=True, help="Delete the run in training.output_dir and begin again.")
@progress_option
def train(config: Path, overrides: tuple[str, ...], online: bool, overwrite: bool, progress: bool) -> None:
    """Train the student on the cache; the teacher is not needed.

    With --online no cache is used: the teacher runs in every step and gives its whole distribution, which costs memory and time.

    Continues from the newest complete checkpoint in training.output_dir, if there is one; interrupted or damaged checkpoints
    are not used. A finished run is left alone, and the run of another recipe is refused. Writes best/ (lowest validation
    loss; not with training.eval_strategy: "no"), final/ (the last step), training_history.json, recipe.yaml, run.json and
    run.log. A directory belongs to one process at a time: a second one is refused with the name of the first. SIGTERM and
    Ctrl-C save a checkpoint and stop; a second Ctrl-C stops at once. Without a terminal, progress is reported once a minute. If
    a loss or a gradient is not finite, the run stops before that step is taken.

    Example: fs-student train --config recipe.yaml --set loss.temperature=1 --set training.output_dir=runs/t1
    """
    recipe = _checked_recipe(config, overrides)

    from phase2_student.training.arguments import idle_note, validation_note
    from phase2_student.training.prepare import prepare
    from phase2_student.training.train import train as run

    plan = prepare(recipe, online=online, progress=progress)
    main_process = plan.arguments.process_index == 0
    if main_process:
        click.echo(
            f"Student {recipe.student.model}, {counted(len(plan.train), 'sample')}{plan.source.note and f', {plan.source.note}'}; "
            f"{plan.objective_text}; {plan.precision}" + (f"; {note}" if (note := validation_note(recipe)) else "")
        )
        if note := idle_note(recipe):
            click.echo(note)
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
            f"{result.output_dir} is finished: {counted(result.steps, 'step')}; pass --overwrite to begin again ({result.best_text})"
        )
    elif main_process:
        click.echo(
            f"{counted(result.steps, 'step')} in {time_text(result.seconds)}, {result.best_text}: {' and '.join(map(str, result.students))}"
        )


@main.command()
@config_option
@set_option
@click.option(
    "--grid",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE,...",
    help="A key of the recipe and its values; may be given several times, and all combinations are trained. Keys of loss need no "
    "section.",
)
@progress_option
def sweep(config: Path, overrides: tuple[str, ...], grid: tuple[str, ...], progress: bool) -> None:
    """Train a grid of runs from one cache, one after the other.

    Each run has a directory below training.output_dir, named after its settings, with the same files that fs-student train writes.
    Points that differ only in a key without an effect (beta with a divergence that has none, any key of the divergence if
    alpha is 0) are one run and are listed. After an interruption, run the same command again: finished runs are left alone, the
    others continue. A run that fails is reported (error.txt in its directory), the rest are trained, and the exit code is 1.

    Example: fs-student sweep --config recipe.yaml --grid temperature=1,2 --grid alpha=0.5,0.7

    Example: fs-student sweep --config recipe.yaml --grid divergence=forward_kl,skewed_kl,js --grid beta=0.1,0.5

    Example: fs-student sweep --config recipe.yaml --grid alpha=0,0.7 --grid temperature=1,2 --grid training.seed=0,1,2
    """
    recipe = _checked_recipe(config, overrides)

    from phase2_student.report.run_table import run_table
    from phase2_student.runs.records import read_runs
    from phase2_student.training.sweep import Outcome, grid_note, grid_runs
    from phase2_student.training.sweep import sweep as run

    runs = grid_runs(config, overrides, grid)
    main_process = os.environ.get("RANK", "0") == "0"

    def report(number: int, outcome: Outcome) -> None:
        if main_process:
            click.echo(f"[{number}/{len(runs)}] {outcome.run.name}: {outcome.text}", err=outcome.result is None)

    if main_process:
        click.echo(f"{counted(len(runs), 'run')} below {recipe.output_dir}")
        if note := grid_note(runs):
            click.echo(note)
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
@config_option
@set_option
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Number of GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@progress_option
def plan(config: Path, overrides: tuple[str, ...], processes: int, as_json: bool, progress: bool) -> None:
    """Show what a training run will cost, before any weights are loaded.

    Shows steps, tokens and padding, and the GPU memory of each way to train: float32 master weights, bfloat16 weights with
    Kahan's remainder, LoRA; each with and without gradient checkpointing. Needs the data and the student's configuration and
    tokenizer, but neither weights nor cache.

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
    help="teacher (as the recipe quantises it), teacher-bf16, base, student (training.output_dir/best, or final if "
    "nothing was validated), student-int8, student-nf4 (made by fs-student export), or NAME=DIR; may be given several times. "
    "Default: teacher, base, student and its exports.",
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
    help="Samples answered at once for the scores; LLM.int8 answers depend on it.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Maximum length of an answer."
)
@click.option(
    "--timed",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Answers timed at batch 1; 0: time nothing, for scores alone.",
)
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=1, show_default=True, help="How often each of them is timed."
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Minimum number of answers timed per batch size and per number of users.",
)
@click.option("--fresh", is_flag=True, help="Measure again, even if a result was kept.")
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

    A row with several answers is asked once for each answer, with the true answers before it as history. Without true answers,
    the evaluation gives KL to and agreement with the cached teacher, and latency. A student gets the image size and the system
    prompt of its own run; if models differ in these, the summary says so. A sample that a model cannot take stops the evaluation;
    with cache.on_error: skip, such samples are left out and named.

    If a teacher is measured, the rows "original goal" compare each student with it: the aims of the work that FirstSight began with,
    a third of the parameters, 30% less memory, 3 times the speed.

    Each model's result is kept as soon as it is complete: an interrupted evaluation continues, and a model is not measured again
    if its weights, the data and the settings are the same. Writes evaluation_<timestamp>.json, with every sample, and
    evaluation_summary.txt.

    Example: fs-student eval --config recipe.yaml --model teacher --model base --model hard=runs/hard/best
    """
    if not timed:
        source = click.get_current_context().get_parameter_source
        for name in ("repetitions", "requests"):
            if source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name} has no effect with --timed 0, which times nothing: omit one of them")

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
    help="Directory of the student; default: training.output_dir/best, or final if nothing was validated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write one export; default: next to the student, with -int8 or -nf4 added to its name.",
)
@click.option("--dry-run", is_flag=True, help="Only show how large the weights would be.")
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
        raise click.UsageError("--int8 or --nf4 is required, or both")
    if int8 and nf4 and output is not None:
        raise click.UsageError("--output names one directory: pass only one of --int8 and --nf4, or omit --output")
    if config is None and model is None:
        raise click.UsageError("--config or --model is required, to name the student")
    if config is None and overrides:
        raise click.UsageError("--set requires --config: it overrides a key of the recipe")
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
            f"{result.directory}: {kind}, {'would be about ' if dry_run else ''}{bytes_text(size)} of weights, "
            f"{result.before_bytes / size:.1f} times less than {bytes_text(result.before_bytes)}"
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
    help="An image; may be given several times, for frames in order.",
)
@click.option("--system", metavar="TEXT", help="System prompt; default: the one of the student's run.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Maximum length of an answer."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="Scale images down to at most this many pixels; default: as in the student's run.",
)
@click.option("--stream", is_flag=True, help="Print the answer while it is generated.")
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


for command in (compare, report, publish):
    main.add_command(command)


def _checked_recipe(config: Path, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a training run. Errors in it are raised before torch is imported, those in `training` soon after."""
    from firstsight.data.samples import check_files

    recipe = load_recipe(config, overrides)
    recipe.model_source(recipe.student)
    check_files(recipe.sources())
    check_training(recipe.training)
    return recipe
