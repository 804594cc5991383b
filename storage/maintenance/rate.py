"""How fast a dump is right now, from its manifests: when units were committed, and how long a worker took for each.

Nothing is written for it: a manifest names the attempt that committed its unit, and an attempt's name begins with the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_SILENT = 600.0
"""Seconds without a commit after which no worker counts as active, unless units take longer."""
_UNITS = 3.0
"""The same limit in units: this many times what a worker takes for one."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A unit that was committed."""

    time: float
    """Seconds since the epoch, by the clock of the worker."""
    samples: int
    seconds: float | None
    """The time that the worker took since its unit before; None where the manifest does not say."""


@dataclass(frozen=True, kw_only=True)
class DumpRate:
    """What the living workers do together."""

    samples_per_second: float | None
    """None: no worker has committed for too long, or there is nothing to estimate it from."""
    workers: int
    """About how many there are, from the time that they report; 0: none seems to be active."""
    seconds_left: float | None
    """For the samples that are missing, at this rate."""
    since_commit: float
    """Seconds since the newest commit."""


def dump_rate(commits: Sequence[Commit], missing: int, *, now: float) -> DumpRate | None:
    """The rate of the workers that still commit; None without any commit.

    Args:
        commits: of all units.
        missing: samples that are planned and not committed.
        now: seconds since the epoch.
    """
    if not commits:
        return None
    newest = max(commit.time for commit in commits)
    silent = max(0.0, now - newest)
    known = [commit.seconds for commit in commits if commit.seconds]
    unit = statistics.median(known) if known else 0.0
    reach = max(_SILENT, _UNITS * unit)
    if silent > reach:
        return DumpRate(samples_per_second=None, workers=0, seconds_left=None, since_commit=silent)
    recent = sorted((commit for commit in commits if commit.time > newest - reach), key=lambda commit: commit.time)
    if all(commit.seconds for commit in recent):
        begin, counted = min(commit.time - (commit.seconds or 0.0) for commit in recent), recent
    else:  # the time begins when the first one ends
        begin, counted = recent[0].time, recent[1:]
    span = newest - begin + max(0.0, silent - unit)  # a unit that is overdue slows it down
    samples = sum(commit.samples for commit in counted)
    rate = samples / span if span > 0 and samples else None
    return DumpRate(
        samples_per_second=rate,
        workers=max(1, round(sum(commit.seconds or 0.0 for commit in counted) / span)) if span > 0 else 1,
        seconds_left=missing / rate if rate else None,
        since_commit=silent,
    )
