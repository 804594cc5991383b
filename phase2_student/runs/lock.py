"""One owner per run directory: a lock file that names host and process and is touched every minute.

    with run_lock(directory) as lock: ...      # RecipeError: another process trains there, with its name

The owner is gone if its process has ended, which only its own host can see, or if it gave no sign of life for ten minutes.
Times are taken from the file system, so that hosts with different clocks agree.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from firstsight.console import time_text
from firstsight.errors import RecipeError, TrainingError

LOCK = "run.lock"
BEAT = 60.0
"""Seconds between two signs of life."""
STALE = 600.0
"""Seconds without one after which an owner counts as gone."""
_SETTLED = 1.0  # seconds to wait for another process that takes over the same lock
_READ_AGAIN = 5


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that trains in a directory."""

    host: str
    pid: int
    started: str
    """When the process began, in the system's units, since process numbers are reused. Empty if the system does not report it."""
    since: str
    token: str
    space: str = ""
    """The name space of the number: containers on one host may each have a process 1. Empty if the system does not report it."""

    @property
    def text(self) -> str:
        """The owner in words."""
        return f"process {self.pid} on {self.host} since {self.since}"


class RunInUse(RecipeError):
    """Another process owns the directory of the run."""


class RunLock:
    """A lock that this process holds."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._released = threading.Event()
        self.lost: str | None = None
        """The process that took it over; None: it is still ours."""
        self._signed = time.time()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise TrainingError if another process took the run over because this one gave no sign of life."""
        if time.time() - self._signed > STALE:  # after a suspension the next regular sign of life comes too late
            self._sign()
        if self.lost is not None:
            raise TrainingError(
                f"{self._path.parent}: the run was taken over by {self.lost}, because this process gave no sign of life for "
                f"{STALE / 60:.0f} minutes; this process stops"
            )

    def release(self) -> None:
        """Release the lock; the file is removed if it is still ours."""
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # a lock that stays behind is taken over, since its process has ended
            found = _read(self._path)
            if isinstance(found, Owner) and found.token == self._owner.token:
                self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while self.lost is None and not self._released.wait(BEAT):
            self._sign()

    def _sign(self) -> None:
        """Give a sign of life, or notice that the lock was taken over."""
        try:
            found = _read(self._path)
            if isinstance(found, Owner) and found.token != self._owner.token:
                self.lost = found.text
            elif found is not None:
                os.utime(self._path)
            elif time.time() - self._signed > STALE:
                self.lost = "another process, which has ended since"
            else:  # somebody removed it
                _create(self._path, self._owner)
        except OSError as error:  # the disk may come back; until then no checkpoint can be saved either
            print(f"{self._path}: the lock could not be touched: {error.strerror}", file=sys.stderr)
        else:
            self._signed = time.time()


@contextmanager
def run_lock(directory: Path) -> Iterator[RunLock]:
    """Own a run directory during a `with` block; the directory is made if it does not exist.

    Raises:
        RunInUse: another process owns it.
        TrainingError: from `RunLock.check`.
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
        for path in made:  # empty ones, from a run that was refused
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
                f"which was last active {time_text(age)} ago; wait for it, stop it, or choose another training.output_dir"
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
    raise RunInUse(f"training.output_dir: several processes begin in {directory} at the same time; try again")


def _me() -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_process(os.getpid()) or "",
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        token=secrets.token_hex(8),
        space=_space(),
    )


def _space() -> str:
    """The name space of process numbers on Linux; empty elsewhere."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _written(path: Path, owner: Owner) -> Path:
    scratch = path.with_name(f".{LOCK}.{owner.token}.tmp")
    scratch.write_text(json.dumps(vars(owner), indent=1) + "\n", encoding="utf-8")
    return scratch


def _create(path: Path, owner: Owner) -> bool:
    """Create the lock file in one step; False if there is one already."""
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
    """The owner; or the reason why it cannot be read; or None without a lock."""
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
    """Why an owner counts as gone; None if it does not."""
    if age > STALE:
        return f"it gave no sign of life for {age / 60:.0f} minutes"
    if not isinstance(found, Owner) or (found.host, found.space) != (socket.gethostname(), _space()):
        return None
    return "its process has ended" if _process(found.pid) != found.started else None


def _process(pid: int) -> str | None:
    """When a process of this host began; empty if the system does not report it, None if there is no such process."""
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
    return None if fields[0] in "ZX" else fields[19]  # on Linux: state, and start time in ticks since boot
