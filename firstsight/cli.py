"""`firstsight`: data and the demo. The commands parse, call and print; torch is imported inside them."""

from __future__ import annotations

from pathlib import Path

import click

from firstsight.console import Commands, progress_option
from firstsight.data_commands import check, convert, init
from firstsight.demo.run import DEFAULT_REGIME, KINDS, Regime, run_demo
from storage.wording import counted


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
@click.option(
    "--swapped",
    default=0.0,
    type=click.FloatRange(0, 1),
    help="Share of the training samples that have another answer of their category, a wrong label; default: none.",
)
@click.option(
    "--described",
    is_flag=True,
    help="Images to describe, with answers in many wordings; default: questions with one answer.",
)
@progress_option
def synth(
    out: Path,
    train: int,
    validation: int,
    seed: int,
    labels: int | None,
    swapped: float,
    described: bool,
    progress: bool,
) -> None:
    """Draw first-person scenes with questions whose answers can be read from the pixels.

    Seven categories of questions in five environments, as OUT/train.jsonl, OUT/validation.jsonl and OUT/images.

    Example: firstsight data synth data --train 5000 --validation 1000 --seed 0
    """
    from firstsight.demo.synth.writing import write_dataset
    from firstsight.models.gpus import bytes_text

    summary = write_dataset(
        out,
        train=train,
        validation=validation,
        seed=seed,
        labels=labels,
        swapped=swapped,
        described=described,
        progress=progress,
    )
    counts = " and ".join(f"{count:,} {split}" for split, count in summary.samples.items())
    wrong = f", {summary.swapped:,} training samples with another's answer" if swapped else ""
    click.echo(f"{out}: {counts} samples, {counted(summary.images, 'image')}, {bytes_text(summary.bytes)}{wrong}")


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
    default=DEFAULT_REGIME,
    show_default=True,
    type=click.Choice(list(KINDS)),
    help="; ".join(f"{name}: {kind.help}" for name, kind in KINDS.items()) + ".",
)
def demo(directory: Path, regime: Regime) -> None:
    """Distil a small trained teacher into a smaller student, from data to the table of results, in minutes on a CPU.

    Runs the commands that a user would type and shows each of them. A second run continues where the first one stopped.

    Example: firstsight demo --dir demo
    """
    run_demo(directory, regime)


main.add_command(init)
for command in (check, convert):
    data.add_command(command)
