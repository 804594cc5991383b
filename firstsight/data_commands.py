"""`firstsight data check`, `firstsight data convert`, `firstsight init`: they parse, call and print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from firstsight.console import progress_option, set_option
from firstsight.data.source import FORMATS, DataSource, Turns
from firstsight.errors import DataError, RecipeError

_F = TypeVar("_F", bound=Callable[..., Any])
_TEMPLATE = Path(__file__).parent / "templates" / "recipe.yaml"


def _file_options(function: _F) -> _F:
    """How the rows of a file are to be understood, where no recipe says it."""
    options = (
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False),
            help="Directory of the image paths; default: the file's.",
        ),
        click.option(
            "--format", "form", type=click.Choice(FORMATS), help="Form of the rows; default: found by looking."
        ),
        click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="A column by another name."),
        click.option("--ignore-column", "ignored", multiple=True, metavar="NAME", help="A column of no use."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _source(
    file: Path, root: Path | None, form: str | None, columns: tuple[str, ...], ignored: tuple[str, ...]
) -> DataSource:
    """The file as the keys of a recipe's data section describe it; RecipeError."""
    from firstsight.recipe import Recipe, load_recipe_content

    pairs = [column.partition("=") for column in columns]
    if wrong := [column for column, (ours, _, theirs) in zip(columns, pairs, strict=True) if not (ours and theirs)]:
        raise RecipeError(f"--column {wrong[0]}: expected OURS=THEIRS, such as question=query")
    file = file.expanduser().absolute()
    data = {
        "root": str(root or file.parent),
        "train": str(file),
        "format": form,
        "columns": {ours: theirs for ours, _, theirs in pairs},
        "ignore_columns": list(ignored),
    }
    recipe: Recipe = load_recipe_content({"data": data}, directory=Path.cwd(), name="the options")
    return recipe.source("train")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A recipe: both splits, and what both models take.",
)
@set_option
@_file_options
@click.option("--headers", is_flag=True, help="Read the headers of images, do not decode them.")
@click.option("--all", "everything", is_flag=True, help="List every fault, not the first 20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@progress_option
def check(
    file: Path | None,
    config: Path | None,
    overrides: tuple[str, ...],
    root: Path | None,
    form: str | None,
    columns: tuple[str, ...],
    ignored: tuple[str, ...],
    headers: bool,
    everything: bool,
    as_json: bool,
    progress: bool,
) -> None:
    """Find all that is wrong with a data file, or with the data of a recipe, in one pass.

    Counts rows, answers, images and categories; names every row that would be refused, with file and line, and what is
    repeated or in both splits. With a recipe also what is too long for teacher or student, from their configuration and tokenizer;
    no weights are read. Exit code 1 where something would be lost.

    Example: firstsight data check rows.json

    Example: firstsight data check --config recipe.yaml
    """
    from firstsight.data.check import check_data, report_text

    if (file is None) == (config is None):
        raise click.UsageError("give either a FILE or --config")
    judge = None
    turns: Turns = "all"
    if config is not None:
        if root or form or columns or ignored:
            raise click.UsageError(
                "--root, --format, --column and --ignore-column go with a FILE; with a recipe use --set data..."
            )
        from firstsight.recipe import load_recipe

        recipe = load_recipe(config, overrides)
        sources = recipe.sources()
        judge, turns = _judge(recipe), recipe.data.turns
    else:
        if overrides:
            raise click.UsageError("--set goes with --config")
        assert file is not None
        sources = [_source(file, root, form, columns, ignored)]
    report = check_data(sources, judge=judge, turns=turns, images=not headers, progress=progress and not as_json)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        click.echo(report_text(report, most=len(report.faults) if everything else 20))
    sys.exit(1 if report.lost else 0)


def _judge(recipe: Any) -> Callable[[Any], None]:
    """What both models of a recipe say about a sample."""
    from firstsight.pair import load_pair

    pair = load_pair(recipe, weights=False)

    def judge(sample: Any) -> None:
        if sample.answer is None and not recipe.cache.generate_missing:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has no answer; add an assistant message, or let the teacher answer: "
                "cache.generate_missing: true"
            )
        pair.check(sample, generated=recipe.cache.generate_max_tokens)

    return judge


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_file_options
@progress_option
def convert(
    file: Path,
    out: Path,
    root: Path | None,
    form: str | None,
    columns: tuple[str, ...],
    ignored: tuple[str, ...],
    progress: bool,
) -> None:
    """Write a data file of any form as JSONL with messages, and its images into a directory `images` beside it.

    The samples keep their keys: a cache of the old file serves the new one.

    Example: firstsight data convert train.parquet data/train.jsonl
    """
    from firstsight.data.write import convert as run

    done = run(_source(file, root, form, columns, ignored), out, progress=progress)
    click.echo(f"{out}: {done.rows:,} rows, {done.images:,} images")
    if done.literal_marks:
        click.echo("texts have <image> as text: set data.format: trl in the recipe")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    default=Path("recipe.yaml"),
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe.",
)
def init(file: Path, out: Path) -> None:
    """Write a commented recipe for a data file.

    Example: firstsight init data/train.jsonl
    """
    from firstsight.data.check import check_data

    if out.exists():
        raise RecipeError(f"{out} exists; give another name with --out, or delete it")
    report = check_data([_source(file, None, None, (), ())], images=False)
    if report.lost:
        raise DataError(f"{report.faults[0]} ({report.fault_count:,} faults; firstsight data check {file} names them)")
    summary = report.summary
    generate = (
        "\n  generate_missing: true              # the teacher answers the rows that have no answer"
        if summary.unanswered
        else ""
    )
    root = os.path.relpath(file.expanduser().parent, out.parent)
    out.write_text(
        _TEMPLATE.read_text(encoding="utf-8").format(
            file=file.name,
            rows=f"{sum(summary.rows.values()):,}",
            images=f"{summary.images:,}",
            name=out.name,
            root=_yaml(root),
            train=_yaml(file.name),
            generate=generate,
        ),
        encoding="utf-8",
    )
    click.echo(f"{out}: edit the models, then firstsight data check --config {out}")


def _yaml(text: str) -> str:
    """A text as a YAML value."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).split("\n...")[0].strip()
