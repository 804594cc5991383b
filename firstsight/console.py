"""What the three commands have in common: errors become one line and exit code 2; options that several commands take."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from firstsight.errors import FirstSightError
from firstsight.secrets import masked_text
from storage.errors import CacheError


class Commands(click.Group):
    """A group of commands that never show a traceback for what a user gave."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; user errors exit 2, trouble with files exits 1."""
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it reports missing optional kernels
        try:
            return super().invoke(ctx)
        except (FirstSightError, CacheError) as error:
            raise _fail(str(error), 2) from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            raise click.exceptions.Exit(130) from None
        except OSError as error:
            if error.errno not in _FILE_TROUBLE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise _fail(f"{place}{error.strerror}", 1) from error


_FILE_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
}


def _fail(message: str, code: int) -> click.exceptions.Exit:
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(masked_text(message), err=True)
    return click.exceptions.Exit(code)


config_option = click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe, a YAML file.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a key of the recipe; may be given several times.",
)
progress_option = click.option("--progress/--no-progress", default=True, help="Show progress bars.")

NAMED = 5
"""Samples left out that are named."""


def left_out_text(reasons: Sequence[str]) -> str:
    """How many samples `cache.on_error: skip` leaves out, and why the first of them."""
    named = [f"  {reason}" for reason in reasons[:NAMED]]
    more = ["  ..."] if len(reasons) > NAMED else []
    return "\n".join([f"{len(reasons):,} samples are left out (cache.on_error: skip):", *named, *more])
