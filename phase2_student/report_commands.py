"""`fs-student report` and `fs-student publish`. They load no model and need no GPU."""

from __future__ import annotations

from pathlib import Path

import click

from firstsight.console import config_option, set_option
from storage.wording import counted


@click.command()
@click.argument("run_dir", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, exists=True),
    help="A file that fs-student eval wrote, or a directory with such files; default: the newest in each RUN_DIR.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default: report.html in the last RUN_DIR.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the data are now, if data.root has moved since the training.",
)
@click.option(
    "--gallery", default=90, show_default=True, type=click.IntRange(min=0), help="Samples shown with their images."
)
def report(
    run_dir: tuple[Path, ...], evaluation: Path | None, output: Path | None, data: Path | None, gallery: int
) -> None:
    """Write one HTML page about one or several runs: curves, results, calibration, costs, and a gallery of answers.

    RUN_DIR is the directory of a run, or a directory with runs directly below it, such as that of a sweep. The page holds
    everything it needs: it opens from the disk, on a phone, without a network.

    Example: fs-student report runs/reference

    Example: fs-student report runs/hard runs/distilled --evaluation evaluation --output report.html
    """
    from phase2_student.report.page import write_report

    written = write_report(run_dir, output=output, evaluation=evaluation, data=data, shown=gallery)
    for note in written.notes:
        click.echo(note, err=True)
    click.echo(f"{written.path} ({written.path.stat().st_size / 1e6:.1f} MB)")


@click.command()
@config_option
@set_option
@click.option(
    "--repo", required=True, metavar="USER/NAME", help="The repository on the hub; created if it does not exist."
)
@click.option("--dry-run", is_flag=True, help="Only write the folder, and list what would be uploaded.")
@click.option("--private", is_flag=True, help="Make a repository that is created private.")
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, exists=True),
    help="A file that fs-student eval wrote, or a directory with such files; default: the newest of the run.",
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

    The card says where the student comes from, what was measured, how to load it, and what it was not tried on. The
    evaluation is pushed as well: it holds the held-out questions and all answers. After a failure, run the same command again.

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
        click.echo(f"  {size:>14,}  {name}")
    if dry_run:
        click.echo(
            f"{counted(len(folder.files), 'file')}, {folder.bytes:,} bytes would go to {repo}; nothing was uploaded"
        )
        return
    click.echo(
        f"{counted(len(folder.files), 'file')}, {folder.bytes:,} bytes: {upload(folder.path, repo=repo, private=private)}"
    )
