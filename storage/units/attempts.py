"""The names of attempts: when writing began, and what no other writer has drawn."""

from __future__ import annotations

import datetime
import secrets

SECONDS = 6 * 24 * 3600
"""A writer refuses to commit an older attempt; gc takes orphans after seven days."""


def attempt_name() -> str:
    """A fresh name: the time in UTC, then 16 random hex digits."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"


def started(attempt: str) -> float:
    """When an attempt of this name began, seconds since the epoch."""
    moment = datetime.datetime.strptime(attempt.split("-")[0], "%Y%m%dT%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()
