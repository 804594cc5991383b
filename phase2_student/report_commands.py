"""`fs-student compare`, `report` and `publish`. They load no model and need no GPU."""

from __future__ import annotations

from pathlib import Path

import click

from firstsight.console import config_option, set_option
from firstsight.models.gpus import bytes_text
from storage.wording import counted


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the validation curves as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables: runs, groups, best.")
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, exists=True),
    help="A file that fs-student eval wrote for these students, which are found by their weights, or a directory of such files; "
    "default: the newest in each run.",
)
def compare(directories: tuple[Path, ...], plot: Path | None, as_json: bool, evaluation: Path | None) -> None:
    """Show runs side by side: the settings that differ, losses and agreement on validation, exact match, time; * marks the best.

    DIR is the directory of a run, or of a sweep. Runs that differ only in their seed are one objective: its mean, spread and number of
    seeds. KL is between teacher and student at T = 1 on validation, whatever was minimised. Losses on different scales, figures of
    different samples and distances to different teachers are not compared. Exact match is shown if fs-student eval has left an
    evaluation in the run.

    Example: fs-student compare runs/sweep --plot sweep.png

    Example: fs-student compare runs/sweep --evaluation evaluation
    """
    from phase2_student.report.run_table import run_json, run_table
    from phase2_student.runs.records import find_runs, read_runs

    runs = read_runs(find_runs(directories))
    click.echo((run_json if as_json else run_table)(runs, evaluation))
    if plot is not None:
        from phase2_student.report.run_plot import plot_runs

        plot_runs(runs, plot)
        click.echo(f"Validation curves: {plot}", err=as_json)


@click.command()
@click.argument("run_dir", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, exists=True),
    help="A file from fs-student eval, or a directory with such files; default: the newest in each RUN_DIR.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default: report.html in the last RUN_DIR.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The data's directory, if data.root was moved after training.",
)
@click.option(
    "--gallery",
    default=90,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of samples shown with their images.",
)
def report(
    run_dir: tuple[Path, ...], evaluation: Path | None, output: Path | None, data: Path | None, gallery: int
) -> None:
    """Write one HTML page about one or several runs: curves, results, calibration, costs, and a gallery of answers.

    RUN_DIR is the directory of a run, or a directory with runs directly below it, such as that of a sweep. The page is one
    file that contains everything it needs, so it can be read anywhere without a network.

    Example: fs-student report runs/reference

    Example: fs-student report runs/hard runs/distilled --evaluation evaluation --output report.html
    """
    from phase2_student.report.page import write_report

    written = write_report(run_dir, output=output, evaluation=evaluation, data=data, shown=gallery)
    for note in written.notes:
        click.echo(note, err=True)
    click.echo(f"{written.path} ({bytes_text(written.path.stat().st_size)})")


@click.command()
@config_option
@set_option
@click.option(
    "--repo", required=True, metavar="USER/NAME", help="The repository on the hub; created if it does not exist."
)
@click.option("--dry-run", is_flag=True, help="Only write the folder, and list what would be uploaded.")
@click.option("--private", is_flag=True, help="Make the repository private, if it is created.")
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, exists=True),
    help="A file from fs-student eval, or a directory with such files; default: the newest of the run.",
)
@click.option("--no-evaluation", is_flag=True, help="Publish without figures; the card says so.")
@click.option("--license", "license_id", metavar="ID", help="A licence identifier of the hub, such as apache-2.0.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write; default: publish in training.output_dir.",
)
def publish(
    config: Path,
    overrides: tuple[str, ...],
    repo: str,
    dry_run: bool,
    private: bool,
    evaluation: Path | None,
    no_evaluation: bool,
    license_id: str | None,
    output: Path | None,
) -> None:
    """Push the student of a run to the hub, with a model card, its evaluation and its recipe.

    The card says where the student comes from, what was measured, how to load it, and what it was not tested on. The
    evaluation is pushed as well: it contains the held-out questions and all answers. After a failure, run the same command again.

    Example: fs-student publish --config recipe.yaml --repo me/my-student --dry-run

    Example: HF_TOKEN=hf_... fs-student publish --config recipe.yaml --repo me/my-student --private --license apache-2.0
    """
    from firstsight.recipe import load_recipe
    from phase2_student.release.publish import check_repo, check_token, prepare_folder, upload

    recipe = load_recipe(config, overrides)
    check_repo(repo)
    if not dry_run:
        check_token()
    folder = prepare_folder(
        recipe, repo=repo, output=output, evaluation=evaluation, evaluated=not no_evaluation, license=license_id
    )
    click.echo(f"{folder.path}")
    for name, size in folder.files:
        click.echo(f"  {bytes_text(size):>8}  {name}")
    if dry_run:
        click.echo(
            f"{counted(len(folder.files), 'file')}, {bytes_text(folder.bytes)} would go to {repo}; nothing was uploaded"
        )
        return
    click.echo(
        f"{counted(len(folder.files), 'file')}, {bytes_text(folder.bytes)}: {upload(folder.path, repo=repo, private=private)}"
    )
