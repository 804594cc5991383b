"""Dumps killed after their first unit has begun, with other numbers of workers each time: the same cache, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache

LONG = os.environ.get("FIRSTSIGHT_FAULTS") == "long"
KILLED_DUMPS = 50 if LONG else 6


class Zygote:
    """The process that forks workers."""

    def __init__(self, config: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        program = Path(__file__).with_name("dump_zygote.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, config: Path, shard: str, log: Path) -> int:
        return int(self._ask({"config": str(config), "shard": shard, "log": str(log)}))

    def wait(self, pid: int) -> int:
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        self.process.communicate(timeout=20)

    def _ask(self, order: dict[str, object]) -> str:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def forwards(log: Path) -> list[list[object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def run_round(zygote: Zygote, config: Path, log: Path, count: int) -> list[int]:
    return [zygote.start(config, f"{index}/{count}", log) for index in range(count)]


@pytest.mark.faults
@pytest.mark.timeout(3600 if LONG else 300)
def test_killed_dumps_leave_the_same_cache_and_compute_nothing_committed_again(workshop):
    rows = workshop.rows(60, questions=3)
    config = workshop.recipe(rows, cache={"path": "undisturbed"})
    zygote = Zygote(config)
    try:
        undisturbed, duration = dump_undisturbed(workshop, zygote, config)
        units = len(list(undisturbed.units()))
        assert units > 10
        killed, trial, counts = 0, 0, {"SIGKILL": 0, "SIGTERM": 0}
        while killed < KILLED_DUMPS:
            trial += 1
            assert trial < 4 * KILLED_DUMPS
            killed += kill_and_finish(workshop, zygote, rows, trial, duration, undisturbed.digest, counts)
        assert min(counts.values()) > 0
        print(f"{killed} killed dumps in {trial} trials, {counts}")
    finally:
        zygote.close()


@pytest.mark.faults
@pytest.mark.timeout(3600 if LONG else 300)
def test_killed_dumps_with_a_tail_rank_leave_one_basis_and_the_same_targets(workshop):
    """The basis is made by whoever comes first, killed or not; the digest names its attempt, so contents are compared."""
    rows = workshop.rows(24, questions=3)
    config = workshop.recipe(rows, cache={"path": "undisturbed", "tail_rank": 6})
    zygote = Zygote(config)
    try:
        undisturbed, duration = dump_undisturbed(workshop, zygote, config)
        killed, trial, counts = 0, 100, {"SIGKILL": 0, "SIGTERM": 0}
        while killed < max(2, KILLED_DUMPS // 10):
            trial += 1
            assert trial < 100 + 4 * max(2, KILLED_DUMPS // 10)
            killed += kill_and_finish(workshop, zygote, rows, trial, duration, None, counts, tail_rank=6)
            found = open_cache(str(workshop.directory / f"trial{trial}"))
            assert {manifest.head for manifest in found.manifests()} == {found.head().digest}
            for name in ("basis", "image", "mean"):
                assert (found.head().array(name) == undisturbed.head().array(name)).all()
            assert set(found) == set(undisturbed)
            for key in found:
                for name, array in undisturbed[key].targets.arrays().items():
                    assert (found[key].targets.arrays()[name] == array).all(), name
    finally:
        zygote.close()


def dump_undisturbed(workshop, zygote, config):
    """The cache of a dump that nobody kills, and the seconds that it took."""
    begin = time.monotonic()
    (pid,) = run_round(zygote, config, workshop.directory / "undisturbed.log", 1)
    assert zygote.wait(pid) == 0
    return open_cache(str(workshop.directory / "undisturbed")), time.monotonic() - begin


def kill_and_finish(workshop, zygote, rows, trial, duration, digest, counts, **cache) -> bool:
    """One dump, killed once to three times and then finished; whether a kill came before the end."""
    rng = random.Random(trial)
    name = f"trial{trial}"
    config = workshop.recipe(rows, name=name, cache={"path": name, **cache})
    log = workshop.directory / f"{name}.log"
    interrupted = False
    for _ in range(rng.randint(1, 3)):
        before = len(forwards(log))
        pids = run_round(zygote, config, log, rng.randint(1, 3))
        while len(forwards(log)) == before and any(alive(pid) for pid in pids):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5 * duration))
        victims = rng.sample(pids, rng.randint(1, len(pids)))
        numbers = {pid: rng.choice([signal.SIGKILL, signal.SIGTERM]) for pid in victims}
        for pid, number in numbers.items():
            os.kill(pid, number)
        sent = time.monotonic()
        for pid in sorted(pids, key=lambda pid: pid not in numbers):
            code = zygote.wait(pid)
            if pid not in numbers:
                assert code == 0
            elif code != 0:
                assert code == (-signal.SIGKILL if numbers[pid] == signal.SIGKILL else 143)
                assert time.monotonic() - sent < 10
                interrupted = True
                counts[numbers[pid].name] += 1
    for pid in run_round(zygote, config, log, rng.randint(1, 3)):
        assert zygote.wait(pid) == 0
    location = str(workshop.directory / name)
    assert digest is None or open_cache(location).digest == digest
    assert cache_status(location).pending == []
    report = verify_cache(location)
    assert report.ok(partial=False), report.problems
    # a worker may look just before another one commits; what was committed for longer is never computed again
    again = [unit for unit, since in forwards(log) if since is not None and since > 0.25]
    assert again == []
    return interrupted


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
