"""`firstsight`: data and the demo. The commands parse, call and print; torch is imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstsight.console import Commands, progress_option
from firstsight.data_commands import check, convert, init
from storage.wording import counted

if TYPE_CHECKING:
    from firstsight.demo.run import Regime


@click.group(cls=Commands)
@click.version_option(package_name="firstsight")
def main() -> None:
    """Distil a vision-language teacher into a student, offline: fs-teacher dumps, fs-student trains.

    Example: firstsight demo
    """


@main.group(cls=Commands)
def data() -> None:
    """Check, convert and make training data.

    Example: firstsight data check rows.json
    """


@data.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", default=5000, show_default=True, type=click.IntRange(min=1), help="Training samples.")
@click.option("--validation", default=1000, show_default=True, type=click.IntRange(min=1), help="Validation samples.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random seed; the same seed writes identical files.",
)
@click.option(
    "--labels",
    type=click.IntRange(min=1),
    help="Training samples that keep their answer, drawn at random and also written to OUT/labelled.jsonl; default: all.",
)
@progress_option
def synth(out: Path, train: int, validation: int, seed: int, labels: int | None, progress: bool) -> None:
    """Draw first-person scenes with questions whose answers can be read from the pixels.

    Seven categories of questions in five environments, as OUT/train.jsonl, OUT/validation.jsonl and OUT/images.

    Example: firstsight data synth data --train 5000 --validation 1000 --seed 0
    """
    from firstsight.demo.synth.writing import write_dataset
    from firstsight.models.gpus import bytes_text

    summary = write_dataset(out, train=train, validation=validation, seed=seed, labels=labels, progress=progress)
    counts = " and ".join(f"{count:,} {split}" for split, count in summary.samples.items())
    click.echo(f"{out}: {counts} samples, {counted(summary.images, 'image')}, {bytes_text(summary.bytes)}")


@main.command()
@click.option(
    "--dir",
    "directory",
    default=Path("demo"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for data, cache, runs and report.",
)
@click.option(
    "--regime",
    default="clean",
    show_default=True,
    type=click.Choice(["few-labels", "clean"]),
    help="few-labels: one training sample in ten has its label, and the teacher answers the rest; clean: all have labels.",
)
def demo(directory: Path, regime: Regime) -> None:
    """Distil a small trained teacher into a smaller student, from data to the table of results, in minutes on a CPU.

    Runs the commands that a user would type and shows each of them. A second run continues where the first one stopped.

    Example: firstsight demo --dir demo
    """
    from firstsight.demo.run import run_demo

    run_demo(directory, regime)


main.add_command(init)
for command in (check, convert):
    data.add_command(command)
