"""The commands `firstsight data check`, `firstsight data convert` and `firstsight init`; they parse, call and print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from firstsight.console import progress_option, set_option
from firstsight.data.source import FORMATS, DataSource, Turns
from firstsight.errors import DataError, RecipeError
from firstsight.recipe_yaml import yaml_flow
from storage.wording import counted

_F = TypeVar("_F", bound=Callable[..., Any])
_TEMPLATE = Path(__file__).parent / "templates" / "recipe.yaml"


def _file_options(function: _F) -> _F:
    """Options that say how to read the rows of a file, where there is no recipe."""
    options = (
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False),
            help="Directory that image paths are relative to; default: the file's.",
        ),
        click.option("--format", "form", type=click.Choice(FORMATS), help="Form of the rows; default: detected."),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="OURS=THEIRS",
            help="Read our column OURS from the file's column THEIRS.",
        ),
        click.option("--ignore-column", "ignored", multiple=True, metavar="NAME", help="A column to ignore."),
        click.option("--allow-urls", is_flag=True, help="Allow image addresses on the web, and fetch them."),
        click.option("--name", metavar="NAME", help="Which dataset of a dataset_info.json."),
        click.option("--subset", metavar="NAME", help="Which configuration of a hub dataset."),
        click.option("--split", metavar="SPLIT", help="Which split of a hub dataset, such as train[:1%]."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _section(
    file: str,
    *,
    root: Path | None,
    form: str | None,
    columns: tuple[str, ...],
    ignored: tuple[str, ...],
    allow_urls: bool,
    name: str | None,
    subset: str | None,
    split: str | None,
) -> dict[str, Any]:
    """A recipe's data section for a file; RecipeError: options that do not apply to it."""
    pairs = [column.partition("=") for column in columns]
    if wrong := [column for column, (ours, _, theirs) in zip(columns, pairs, strict=True) if not (ours and theirs)]:
        raise RecipeError(f"--column {wrong[0]}: expected OURS=THEIRS, such as question=query")
    hub = file.removeprefix("hub:") if file.startswith("hub:") else None
    path = Path(hub or file).expanduser().absolute()
    if hub is None and (subset or split):
        raise RecipeError(f"--{'subset' if subset else 'split'} is for a hub dataset; give that as hub:{file}")
    if hub is not None and name:
        raise RecipeError("--name is for a dataset_info.json, not for a hub dataset; use --subset")
    train: str | dict[str, str] = str(path)
    if hub is not None:
        asked = {"hub": str(path) if path.is_dir() else hub, "subset": subset, "split": split}
        train = {key: value for key, value in asked.items() if value is not None}
    elif name:
        train = {"dataset_info": str(path), "name": name}
    elif path.name == "dataset_info.json" and path.is_file():
        raise RecipeError(f"{file}: a list of datasets; choose one with --name")
    return {
        "root": str((root or path.parent).absolute()) if hub is None or path.is_dir() or root else str(Path.cwd()),
        "train": train,
        "format": form,
        "columns": {ours: theirs for ours, _, theirs in pairs},
        "ignore_columns": list(ignored),
        "allow_urls": allow_urls,
    }


def _source(data: dict[str, Any]) -> DataSource:
    """The rows of a data section; RecipeError."""
    from firstsight.recipe import Recipe, load_recipe_content

    recipe: Recipe = load_recipe_content({"data": data}, directory=Path.cwd(), name="the options")
    return recipe.source("train")


@click.command()
@click.argument("file", required=False)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A recipe: check both splits against both models.",
)
@set_option
@_file_options
@click.option("--headers", is_flag=True, help="Read only the headers of images, without decoding them.")
@click.option("--all", "everything", is_flag=True, help="List every fault, not the first 20.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write histograms as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@progress_option
def check(
    file: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    headers: bool,
    everything: bool,
    plot: Path | None,
    as_json: bool,
    progress: bool,
    **reading: Any,
) -> None:
    """Find everything that is wrong with a data file, or with the data of a recipe, in one pass.

    Counts rows, answers, images and categories. Names every row that would be refused, with file and line, and reports rows that
    are repeated or in both splits. With a recipe, also finds samples too long for teacher or student, from their configuration
    and tokenizer, without reading weights. FILE is a data file, a directory (save_to_disk, Parquet), a hub dataset as hub:ID, or
    a dataset_info.json with --name. The exit code is 1 if something would be lost.

    Example: firstsight data check rows.json

    Example: firstsight data check --config recipe.yaml --plot data.png

    Example: firstsight data check hub:HuggingFaceH4/llava-instruct-mix-vsft --split train[:1%]
    """
    from firstsight.data.check import check_data, draw, report_text

    if (file is None) == (config is None):
        raise click.UsageError("give either a FILE or --config")
    judge = None
    turns: Turns = "all"
    if config is not None:
        if any(reading.values()):
            raise click.UsageError(
                "--root, --format, --column and the like need a FILE; with a recipe use --set data..."
            )
        from firstsight.recipe import load_recipe

        recipe = load_recipe(config, overrides)
        sources = recipe.sources()
        judge, turns = _judge(recipe), recipe.data.turns
    else:
        if overrides:
            raise click.UsageError("--set needs --config")
        assert file is not None
        sources = [_source(_section(file, **reading))]
    report = check_data(sources, judge=judge, turns=turns, images=not headers, progress=progress and not as_json)
    if plot is not None:
        draw(report, plot)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        click.echo(report_text(report, most=len(report.faults) if everything else 20))
    sys.exit(1 if report.lost else 0)


def _judge(recipe: Any) -> Callable[[str, Any, bool], int]:
    """A check of a sample against both models of a recipe."""
    from firstsight.pair import load_pair

    pair = load_pair(recipe, weights=False)

    def judge(_split: str, sample: Any, _new: bool) -> int:
        if sample.answer is None and not recipe.cache.generate_missing:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has no answer{' to its last question' if sample.answers else ''}; add an assistant "
                "message, or let the teacher answer: "
                "cache.generate_missing: true"
            )
        return pair.check(sample, generated=recipe.cache.generate_max_tokens)

    return judge


@click.command()
@click.argument("file")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_file_options
@progress_option
def convert(file: str, out: Path, progress: bool, **reading: Any) -> None:
    """Write a data file of any form as JSONL with messages, and its images into a directory `images` beside it.

    FILE is as for firstsight data check. The samples keep their keys, so a cache made from the old file serves the new one.

    Example: firstsight data convert train.parquet data/train.jsonl

    Example: firstsight data convert dataset_info.json data/train.jsonl --name mllm_demo
    """
    from firstsight.data.write import convert as run

    done = run(_source(_section(file, **reading)), out, progress=progress)
    click.echo(f"{out}: {counted(done.rows, 'row')}, {counted(done.images, 'image')}")
    if done.literal_marks:
        click.echo("some texts contain a literal <image>: set data.format: trl in the recipe")


@click.command()
@click.argument("file")
@click.option(
    "--out",
    default=Path("recipe.yaml"),
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe to write.",
)
@_file_options
def init(file: str, out: Path, **reading: Any) -> None:
    """Write a commented recipe for a data file.

    FILE is as for firstsight data check. The options that describe it are written into the recipe.

    Example: firstsight init data/train.jsonl

    Example: firstsight init qa.csv --column question=query --ignore-column source
    """
    from firstsight.data.check import check_data

    if out.exists():
        raise RecipeError(f"{out} exists; give another name with --out, or delete it")
    section = _section(file, **reading)
    places: list[float] = []

    def place(_split: str, sample: Any, _new: bool) -> int:
        places.append(int(sample.key[:16], 16) / 2**64)
        return 0

    report = check_data([_source(section)], judge=place, images=False)
    if report.lost:
        raise DataError(
            f"{report.faults[0]} ({counted(report.fault_count, 'fault')}; firstsight data check {file} lists them)"
        )
    summary = report.summary
    generate = (
        "\n  generate_missing: true              # the teacher answers the rows that have no answer"
        if summary.unanswered
        else ""
    )
    root, train = _portable(section, out.parent)
    stated = {key: section[key] for key in ("format", "columns", "ignore_columns", "allow_urls") if section[key]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        _TEMPLATE.read_text(encoding="utf-8").format(
            file=file,
            rows=f"{sum(summary.rows.values()):,}",
            images=f"{summary.images:,}",
            name=out.name,
            root=yaml_flow(root),
            train=yaml_flow(train),
            reading="".join(f"\n  {key}: {yaml_flow(value)}" for key, value in stated.items()),
            generate=generate,
        ),
        encoding="utf-8",
    )
    click.echo(f"{out}: edit the models, then firstsight data check --config {out}")
    if not min(places) < 0.05 <= max(places):
        part = "none" if min(places) >= 0.05 else "all"
        click.echo(f"{part} of the rows fall into the 5% for validation; change data.validation")


def _portable(section: dict[str, Any], directory: Path) -> tuple[str, Any]:
    """The root of a data section relative to the recipe's directory, and its rows relative to the root."""
    root, train = section["root"], section["train"]
    if isinstance(train, str):
        train = os.path.relpath(train, root)
    else:
        train = {
            key: os.path.relpath(value, root) if os.path.isabs(value) and key in ("hub", "dataset_info") else value
            for key, value in train.items()
        }
    return os.path.relpath(root, directory.absolute()), train
