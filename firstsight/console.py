"""What the commands share: errors as one line and exit code 2, common options, progress lines.

beats = Heartbeat(len(samples), unit="sample", label="teacher")
for batch in beats.waiting(batches):
    done += len(batch)
    beats.beat(done)        # a line a minute on standard error, where there is no terminal to show a bar
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from firstsight.errors import FirstSightError
from firstsight.secrets import masked_text
from storage.errors import CacheError
from storage.wording import counted


class Commands(click.Group):
    """A group of commands that never show a traceback for what a user gave.

    Args:
        args: of `click.Group`.
        several: names of the commands that several processes share; any other one, started several times by torchrun or
            accelerate launch, is the work of the first process.
        kwargs: of `click.Group`.
    """

    def __init__(self, *args: Any, several: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.several = frozenset(several)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The stock one; a process that has no part in the command ends here, and says so."""
        found = super().resolve_command(ctx, args)
        rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if rank != "0" and found[0] not in self.several and not isinstance(found[1], click.Group):
            click.echo(
                f"process {rank} of {count}: {found[0]} is the work of one process, and process 0 does it", err=True
            )
            raise click.exceptions.Exit(0)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; user errors exit with 2, file system errors with 1."""
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
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


def _fail(message: str, code: int) -> click.exceptions.Exit:
    click.echo(f"Error: {masked_text(message)}", err=True)  # as click shows its own
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
progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    callback=lambda _context, _option, value: sys.stderr.isatty() if value is None else value,
    help="Show progress bars; default: only on a terminal.",
)

T = TypeVar("T")

HEARTBEAT = 60.0
"""Seconds between two progress lines."""
_FOREVER = 10.0**9  # seconds; anything longer counts as unknown


class Heartbeat:
    """Progress lines of a long task: how far it is, how fast, when it will be done, and how long it waited for data.

    Args:
        total: how much there is to do; None: unknown.
        unit: what is counted, in the singular.
        label: begins each line.
        done: how much was done before.
        seconds: between two lines; None: `HEARTBEAT`.
    """

    def __init__(
        self, total: int | None, *, unit: str, label: str = "", done: int = 0, seconds: float | None = None
    ) -> None:
        self._total, self._unit, self._label = total, unit, label
        self._every = HEARTBEAT if seconds is None else seconds
        self._waited = 0.0
        self._since, self._done = time.monotonic(), done

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time spent waiting for each is counted."""
        iterator = iter(items)
        while True:
            begin = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited(time.monotonic() - begin)
            yield item

    def waited(self, seconds: float) -> None:
        """Count seconds in which the task waited for data."""
        self._waited += seconds

    def beat(self, done: int, figures: Mapping[str, float] | None = None) -> str | None:
        """The next progress line if it is due; printed where standard error is not a terminal.

        Args:
            done: how much is done now.
            figures: `loss`, and `data_wait` where the task counts it itself.
        """
        now = time.monotonic()
        if now - self._since < self._every:
            return None
        seconds = max(now - self._since, 1e-9)
        shown = {"data_wait": self._waited / seconds} if self._waited else {}
        line = heartbeat(done, self._total, (done - self._done) / seconds, {**shown, **(figures or {})}, self._unit)
        line = f"{self._label}: {line}" if self._label else line
        self._since, self._done, self._waited = now, done, 0.0
        if not sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
        return line


def heartbeat(done: int, total: int | None, rate: float, figures: Mapping[str, float], unit: str = "step") -> str:
    """A progress line.

    Args:
        done: how much is done.
        total: how much there is in all; None: unknown.
        rate: per second.
        figures: `loss` and `data_wait`, the share of the time spent waiting for data, if known.
        unit: what is counted, in the singular.
    """
    parts = [f"{unit} {done:,}", f"{rate:.3g} {unit}s/s"]
    if total is not None:
        parts[0] += f" of {total:,} ({done / max(1, total):.0%})"
        parts.append(f"ETA {time_left(total - done, rate)}")
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4g}")
    if "data_wait" in figures:
        parts.append(f"waiting for data {figures['data_wait']:.0%}")
    return ", ".join(parts)


def time_left(count: float, rate: float) -> str:
    """How long `count` more take at `rate` per second, as h:mm:ss or with days; `unknown` if the rate is 0."""
    seconds = count / rate if rate > 0 else _FOREVER
    return str(timedelta(seconds=round(seconds))) if seconds < _FOREVER else "unknown"


NAMED = 5
"""How many of the samples left out are named."""


def left_out_text(reasons: Sequence[str]) -> str:
    """How many samples `cache.on_error: skip` leaves out, and the reasons for the first of them."""
    named = [f"  {reason}" for reason in reasons[:NAMED]]
    more = ["  ..."] if len(reasons) > NAMED else []
    count = counted(len(reasons), "sample is", "samples are")
    return "\n".join([f"{count} left out (cache.on_error: skip):", *named, *more])


def time_text(seconds: float) -> str:
    """How long something took: `9.3 s`, `95 s`, `12 min`, `2 h 05 min`."""
    if seconds < 119.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"
