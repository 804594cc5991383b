"""`fs-teacher`: the commands of phase 1. They parse, call and print; torch is imported inside them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from firstsight.console import Commands, config_option, left_out_text, progress_option, set_option
from firstsight.recipe import Recipe, check_training, load_recipe
from phase1_teacher.store_commands import gc, status, verify
from phase1_teacher.workers import Shard, Stopped, parse_shard, shard_from_environment, stop_on_signals
from storage.wording import counted

if TYPE_CHECKING:
    from phase1_teacher.planning.job import DumpJob


@click.group(cls=Commands, several=("dump", "derive"))
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
    help="Begin with shard I of N, counted from 0; default: set by torchrun or Slurm, else 0/1.",
)
@click.option(
    "--check-quantization",
    is_flag=True,
    help="Also load the unquantised teacher and report how closely the two agree; takes memory for both.",
)
@click.option(
    "--retry-skipped",
    is_flag=True,
    help="Also retry samples that were skipped because of what the teacher computed: logits that are not finite, too little "
    "memory, an unusable answer of its own. With several workers, pass it to one of them.",
)
@click.option(
    "--student",
    type=click.Choice(["base", "none"]),
    default="base",
    show_default=True,
    help="The student whose gradient the final report measures. base: the recipe's student, loaded after the teacher is freed; "
    "none: no student is loaded, and the report leaves this out.",
)
@progress_option
def dump(
    config: Path,
    overrides: tuple[str, ...],
    shard: str | None,
    check_quantization: bool,
    retry_skipped: bool,
    student: str,
    progress: bool,
) -> None:
    """Write the teacher's soft targets for every sample that the cache does not hold yet. With cache.targets: exact, it writes
    the hidden states that the teacher's head reads; these need no student.

    You can interrupt it at any time: committed units stay, and the same command continues with the rest. Any number of
    processes can work on one cache: each begins with its shard and then takes any unit that is not committed.
    With cache.on_error: skip, a sample that cannot be dumped is left out and named. A later dump tries it again once it can
    be dumped, for example when its image was repaired or data.max_length was raised.
    On SIGTERM or SIGUSR1 it commits or drops the current unit and exits within ten seconds with code 143.

    Example: fs-teacher dump --config recipe.yaml --set cache.top_k=32

    Example: torchrun --nproc-per-node 8 --no-python fs-teacher dump --config recipe.yaml
    """
    from firstsight.data.columns import ColumnUse
    from firstsight.data.samples import check_files
    from phase1_teacher.dump import prepare_dump

    worker = parse_shard(shard) if shard else shard_from_environment(os.environ)
    recipe = load_recipe(config, overrides)
    check_training(recipe.training)
    try:
        with stop_on_signals():
            left_out: list[str] = []
            columns = ColumnUse()
            rows = check_files(recipe.sources(), left_out=left_out, columns=columns, progress=progress)
            for note in columns.notes():
                click.echo(note, err=True)
            if left_out:
                click.echo(left_out_text(left_out), err=True)
            job = prepare_dump(
                recipe,
                rows=rows,
                retry_skipped=retry_skipped,
                measure_student=student == "base" and worker.index == 0,
                progress=progress,
            )
            _dump(recipe, job, worker, check_quantization, progress)
    except Stopped as stopped:
        click.echo(
            f"stopped by {stopped}; committed units stay, and the same command continues with the rest", err=True
        )
        sys.exit(stopped.exit_code)


def _dump(recipe: Recipe, job: DumpJob, shard: Shard, check_quantization: bool, progress: bool) -> None:
    from firstsight.models.loading import hide_bars
    from firstsight.pair import clock_note
    from phase1_teacher.dump import dump as run
    from phase1_teacher.summary import summary_text

    if not job.pending:
        click.echo(f"Nothing to do: {_held(recipe, job)}")
    else:
        worker = f", worker {shard}" if shard.count > 1 else ""
        click.echo(f"Teacher {recipe.teacher.model} ({recipe.teacher.quantization}) -> {recipe.cache_location}{worker}")
        if job.again:
            click.echo(
                counted(job.again, "sample that an earlier dump skipped is", "samples that an earlier dump skipped are")
                + " tried again"
            )
        if note := clock_note(job.pair.teacher, job.pair.student):
            click.echo(note[0].upper() + note[1:])
    if not progress:
        hide_bars()
    summary = run(job, shard=shard, check_quantization=check_quantization, progress=progress)
    click.echo(summary_text(recipe.cache_location, summary, recipe.loss.temperature))


def _all(count: int) -> str:
    return "the only sample" if count == 1 else f"all {count:,} samples"


def _held(recipe: Recipe, job: DumpJob) -> str:
    """What the cache holds, once all samples of the recipe are planned and committed."""
    from storage.exact import open_any_cache

    cache = open_any_cache(recipe.cache_location)
    skipped = [reason for key, reason in cache.skipped().items() if key in job.samples]
    if not skipped:
        return f"{recipe.cache_location} holds {_all(len(job.samples))} of this recipe."
    retried = job.writer.version.replans_skipped
    advice = (
        "repair them and run the same command again, or pass --retry-skipped for those that only the teacher can judge"
        if retried
        else "to include them, use another cache.path"
    )
    return (
        f"{recipe.cache_location} holds all samples of this recipe except {len(skipped):,} that an earlier dump skipped "
        f"({skipped[0]}); {advice}"
    )


@main.command()
@click.argument("exact")
@config_option
@set_option
@click.option(
    "--shard",
    metavar="I/N",
    help="Begin with shard I of N, counted from 0; default: set by torchrun or Slurm, else 0/1.",
)
@progress_option
def derive(exact: str, config: Path, overrides: tuple[str, ...], shard: str | None, progress: bool) -> None:
    """Write the recipe's top_k cache from EXACT, a cache of exact targets. A dump for the recipe's student would write the same.

    Neither the teacher nor the data are needed: EXACT stores the hidden states, the head and the tokens. The student may have
    any vocabulary. Like a dump, this can be interrupted, continued and run by several processes. Run it again when EXACT has grown.

    Example: fs-teacher derive exact.zarr --config recipe.yaml --set cache.path=for-2b.zarr
    """
    worker = parse_shard(shard) if shard else shard_from_environment(os.environ)
    recipe = load_recipe(config, overrides)
    try:
        with stop_on_signals():
            _derive(exact, recipe, worker, progress)
    except Stopped as stopped:
        click.echo(
            f"stopped by {stopped}; committed units stay, and the same command continues with the rest", err=True
        )
        sys.exit(stopped.exit_code)


def _derive(exact: str, recipe: Recipe, shard: Shard, progress: bool) -> None:
    from phase1_teacher.derive import derive as run
    from phase1_teacher.derive import prepare_derivation
    from phase1_teacher.summary import summary_text

    job = prepare_derivation(exact, recipe)
    if job.open_units:
        click.echo(
            f"{exact} lacks {counted(job.open_units, 'planned unit')}: finish its dump, then run this command again"
        )
    foreign = job.units()[1]
    if foreign:
        key = next(key for key in foreign[0].keys if not job.knows(key))
        click.echo(
            f"{recipe.cache_location} has {counted(len(foreign), 'planned unit')} with samples that {exact} does not hold (the first is "
            f"{key}): run the dump or the derivation that planned them again"
        )
    worker = f", worker {shard}" if shard.count > 1 else ""
    click.echo(f"{exact} -> {recipe.cache_location} for {recipe.student.model}{worker}")
    summary = run(job, shard=shard, progress=progress)
    if not summary.units:
        rest = " except those units" if foreign else ""
        click.echo(
            f"Nothing to do: {recipe.cache_location} holds everything in {exact}{rest}, {counted(len(job.exact), 'sample')}."
        )
    click.echo(summary_text(recipe.cache_location, summary, recipe.loss.temperature))


@main.command()
@config_option
@set_option
@click.option(
    "--utilization",
    type=click.FloatRange(0, 1, min_open=True),
    help="Assumed share of a GPU's peak that the dump reaches. Default: as measured on an H200, 0.17 with int8, 0.32 unquantised; "
    "0.3 with nf4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@progress_option
def plan(config: Path, overrides: tuple[str, ...], utilization: float | None, as_json: bool, progress: bool) -> None:
    """Show what a dump will cost, before any model is loaded.

    Shows samples, tokens, the size of the cache, memory and GPU-hours on several GPUs, how much the cache holds already, and
    the same for 10, 1,000 and a million times the data. Needs the models' configurations and tokenizers, not their weights.

    Example: fs-teacher plan --config recipe.yaml --set cache.top_k=32
    """
    recipe = load_recipe(config, overrides)

    from phase1_teacher.planning.plan import plan_dump, plan_json, plan_text

    planned = plan_dump(recipe, utilization=utilization, progress=progress and not as_json)
    click.echo(plan_json(planned) if as_json else plan_text(planned, recipe))


@main.command()
@click.argument("cache")
@click.option(
    "--sample", metavar="ID", help="The sample's id, or the beginning of its key; default: the first sample in CACHE."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe that names the data and the student; default: recipe.yaml beside CACHE.",
)
@set_option
@click.option("--temperature", default=1.0, show_default=True, help="Must lie within the cache's.")
@click.option("--alternatives", default=5, show_default=True, type=click.IntRange(min=1), help="Shown per position.")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Also write an HTML file.")
def show(
    cache: str,
    sample: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    temperature: float,
    alternatives: int,
    page: Path | None,
) -> None:
    """Show a sample of CACHE: images, the whole conversation, and the answer token by token with the teacher's alternatives.

    The cache holds neither images nor text: these come from the recipe's data, and the tokens from the student's tokenizer.

    Example: fs-teacher show cache.zarr

    Example: fs-teacher show cache.zarr --sample train-000017 --html sample.html
    """
    if config is None and "://" in cache:
        raise click.UsageError("--config is required: recipe.yaml is only looked for beside a local cache")
    recipe = load_recipe(config or Path(cache).parent / "recipe.yaml", overrides)

    from phase1_teacher.show import find_sample, html_page, terminal_text

    shown = find_sample(recipe, cache, sample, temperature=temperature, alternatives=alternatives)
    click.echo(terminal_text(shown, color=sys.stdout.isatty()))
    if page:
        page.write_text(html_page(shown), encoding="utf-8")
        click.echo(f"\n{page}")


@main.command()
@click.argument("cache")
@config_option
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default: answers.jsonl in data.root. An existing file is not overwritten.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation"]),
    default="train",
    show_default=True,
    help="The split to write; one at a time, so that no validation row is trained on.",
)
@click.option("--keep-cut", is_flag=True, help="Also write answers that were cut at the maximum length.")
@progress_option
def answers(
    cache: str,
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    split: Literal["train", "validation"],
    keep_cut: bool,
    progress: bool,
) -> None:
    """Write the answers that the teacher gave in the dump of CACHE as JSONL, to look at or to train on.

    Writes the rows that had no answer, in the order of the data and in the form messages, each with the teacher's answer at its
    end. An answer that was cut at the maximum length is left out. Image paths are relative to the recipe's data.image_root. The
    cache may be of either kind; no weights are read.

    Example: fs-teacher answers cache.zarr --config recipe.yaml --out data/answers.jsonl
    """
    recipe = load_recipe(config, overrides)

    from phase1_teacher.answers import left_out, write_answers

    file = out or recipe.data_root / "answers.jsonl"
    written = write_answers(recipe, cache, file, split=split, keep_cut=keep_cut, progress=progress)
    click.echo(f"{file}: {counted(written.rows, 'row')} of {recipe.source(split)}, answered by the teacher")
    if written.kept_cut:
        cut = counted(written.kept_cut, "answer was", "answers were")
        click.echo(
            f"{cut} cut at the maximum length, and written: a student trained on them learns to stop there", err=True
        )
    for line in left_out(written):
        click.echo(f"not written: {line}", err=True)
    if written.literal_marks:
        click.echo(
            "some texts contain <image> as text: set data.format: trl in a recipe that reads this file", err=True
        )


for command in (status, verify, gc):
    main.add_command(command)
