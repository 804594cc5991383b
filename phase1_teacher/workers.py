"""Many workers on one cache: which units a worker begins with, and how it stops on a signal.

There is no coordinator and no lock: the plan says what there is to do, manifests say what is done. A worker begins with its
shard and then takes any unit that is not committed, so the others do a dead worker's shard.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from firstsight.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Worker `index` of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse `i/n`, with i from 0 to n - 1. Raises RecipeError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not int(match[1]) < int(match[2]):
        raise RecipeError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4")
    return Shard(int(match[1]), int(match[2]))


def shard_from_environment(environment: Mapping[str, str]) -> Shard:
    """The shard that torchrun (RANK, WORLD_SIZE) or Slurm gave this process; else 0/1.

    In a Slurm array each task is a worker; if srun starts several processes in a task, each of them is one. In a sparse
    array (`--array=1,5,7`) the shard is only a starting point.

    Raises:
        RecipeError: a variable is not a whole number.
    """
    rank, world = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if rank is not None and world is not None:
        return Shard(rank % max(1, world), max(1, world))
    index, count = 0, 1
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is not None:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0
        step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
        count = max(1, _number(environment, "SLURM_ARRAY_TASK_COUNT") or 1)
        index = (task - first) // max(1, step) % count
    process, processes = (_number(environment, name) for name in ("SLURM_PROCID", "SLURM_NTASKS"))
    if process is not None and processes is not None and processes > 1:
        index, count = index * processes + process % processes, count * processes
    return Shard(index, count)


def work_order(units: Sequence[T], shard: Shard) -> list[T]:
    """All units, the worker's own shard first, then the others in a random order that differs from worker to worker.

    Workers that have finished their shards look for work in different places. No lock keeps two of them from the same
    unit; the order only makes it rare.
    """
    start = len(units) * shard.index // shard.count
    stop = len(units) * (shard.index + 1) // shard.count
    others = [*units[stop:], *units[:start]]
    if shard.count > 1:
        random.Random(shard.index).shuffle(others)
    return [*units[start:stop], *others]


class Stopped(BaseException):
    """A signal told this process to stop. It is no Exception, so that no handler takes it for a failed sample."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 130 if number == signal.SIGINT else 128 + signal.SIGTERM


@contextmanager
def stop_on_signals(deadline: float = 8.0) -> Iterator[None]:
    """Within the block SIGTERM, SIGUSR1 and SIGINT raise `Stopped` in the main thread, once.

    The process ends at most `deadline` seconds after the signal, even if the main thread is still in a long computation: what
    is not committed by then is dropped, as with SIGKILL, and the exit code is the same.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in numbers:  # a second signal must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    def watch() -> None:
        # the interpreter's own handler writes the number at once, even while the main thread is busy
        data = os.read(reader, 1)
        os.close(reader)
        if data and data[0] in numbers and not left.wait(deadline):
            os._exit(Stopped(data[0]).exit_code)

    left = threading.Event()

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d+", text):
        raise RecipeError(f"environment variable {name}: expected a whole number, got {text!r}")
    return int(text)
