"""One owner per run directory: a lock file with host and process, touched every minute.

    with run_lock(directory) as lock: ...      # RecipeError: another process trains there, with its name

The owner is gone if its process is dead, which can be told on its own host, or if it gave no sign of life for ten minutes.
Times are those that the file system gives to files, so that hosts whose clocks differ agree.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from firstsight.errors import RecipeError, TrainingError

LOCK = "run.lock"
BEAT = 60.0
"""Seconds between two signs of life."""
STALE = 600.0
"""Seconds without one after which an owner counts as gone."""
_SETTLED = 1.0  # seconds in which another process that takes over the same lock shows itself
_READ_AGAIN = 5


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who trains in a directory."""

    host: str
    pid: int
    started: str
    """When its process began, as the system counts: a number is given to other processes later. Empty where it does not tell."""
    since: str
    token: str

    @property
    def text(self) -> str:
        """In words."""
        return f"process {self.pid} on {self.host} since {self.since}"


class RunInUse(RecipeError):
    """The directory of a run that another process owns."""


class RunLock:
    """A lock that this process holds."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._released = threading.Event()
        self.lost: str | None = None
        """Who took it over; None: it is ours."""
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """TrainingError if another process took the run over, for want of signs of life."""
        if self.lost is not None:
            raise TrainingError(
                f"{self._path.parent}: the run was taken over by {self.lost}, since this process gave no sign of life for "
                f"{STALE / 60:.0f} minutes; it stops here and leaves the run to the other"
            )

    def release(self) -> None:
        """Give it up; it is removed if it still is ours."""
        self._released.set()
        self._thread.join()
        found = _read(self._path)
        if isinstance(found, Owner) and found.token == self._owner.token:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            found = _read(self._path)
            if isinstance(found, Owner) and found.token != self._owner.token:
                self.lost = found.text
                return
            try:
                if found is None:  # somebody removed it
                    _create(self._path, self._owner)
                else:
                    os.utime(self._path)
            except OSError as error:  # the disk may come back; without it no checkpoint is saved either
                print(f"{self._path}: no sign of life could be given: {error.strerror}", file=sys.stderr)


@contextmanager
def run_lock(directory: Path) -> Iterator[RunLock]:
    """Own a run directory, which is made if need be, for a `with` block.

    Raises:
        RunInUse: another process owns it.
        TrainingError: `RunLock.check`.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = _take(directory)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        for path in made:  # by a run that was refused
            try:
                path.rmdir()
            except OSError:
                break


def _take(directory: Path) -> RunLock:
    path, mine = directory / LOCK, _me()
    for _ in range(_READ_AGAIN):
        if _create(path, mine):
            return RunLock(path, mine)
        found = _read(path)
        if found is None:  # released just now
            continue
        age = _age(path)
        reason = _gone(found, age)
        if reason is None:
            raise RunInUse(
                f"training.output_dir: {directory} is in use by {found.text if isinstance(found, Owner) else 'another process'}, "
                f"whose last sign of life is {age:.0f} s old; wait for it, stop it, or choose another training.output_dir"
            )
        print(
            f"{path}: taken over from {found.text if isinstance(found, Owner) else 'its owner'}: {reason}",
            file=sys.stderr,
        )
        os.replace(_written(path, mine), path)
        time.sleep(_SETTLED)
        found = _read(path)
        if isinstance(found, Owner) and found.token == mine.token:
            return RunLock(path, mine)
    raise RunInUse(f"training.output_dir: other processes begin in {directory} at the same time; try again")


def _me() -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_process(os.getpid()) or "",
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        token=secrets.token_hex(8),
    )


def _written(path: Path, owner: Owner) -> Path:
    scratch = path.with_name(f".{LOCK}.{owner.token}.tmp")
    scratch.write_text(json.dumps(vars(owner), indent=1) + "\n", encoding="utf-8")
    return scratch


def _create(path: Path, owner: Owner) -> bool:
    """Put a lock in place whole, unless there is one."""
    scratch = _written(path, owner)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(scratch.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    finally:
        scratch.unlink(missing_ok=True)
    return True


def _read(path: Path) -> Owner | str | None:
    """The owner; why it cannot be told; or None where there is no lock."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return "it cannot be read"


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system."""
    scratch = path.with_name(f".{LOCK}.{secrets.token_hex(8)}.tmp")
    try:
        scratch.touch()
        return max(0.0, scratch.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
    finally:
        scratch.unlink(missing_ok=True)


def _gone(found: Owner | str, age: float) -> str | None:
    """Why an owner counts as gone, or None."""
    if age > STALE:
        return f"it gave no sign of life for {age / 60:.0f} minutes"
    if isinstance(found, Owner) and found.host == socket.gethostname() and _process(found.pid) != found.started:
        return "its process has ended"
    return None


def _process(pid: int) -> str | None:
    """When a process of this host began, empty where the system does not tell; None where there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    return None if fields[0] in "ZX" else fields[19]  # of Linux: state, and ticks since the machine was started
