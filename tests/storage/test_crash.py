"""SIGKILL at any moment: a unit is there whole or not at all, and what was committed stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import storage_cases
from storage_cases import (
    LONG,
    assert_holds,
    assert_stored,
    head_of,
    open_kind,
    sample_of_kind,
    spec_of_kind,
    write_cache,
    write_unit,
)

from storage.failpoints import VARIABLE
from storage.maintenance.gc import collect_garbage
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.writer import create_cache

COUNT = 24
UNITS = 6
KILLS = 200 if LONG else 12
FAILPOINTS = (
    "tree:begin",
    "tree:first",
    "tree:half",
    "tree:files",
    "tree:directories",
    "tree:parent",
    "create:begin",
    "create:written",
    "create:linked",
    "create:synced",
    "commit:created",
)


@pytest.fixture(scope="module", params=["v1", "exact", "tail"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def samples(kind):
    return {sample.key: sample for sample in (sample_of_kind(kind, number) for number in range(COUNT))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, kind, samples):
    location = tmp_path_factory.mktemp("undisturbed") / "cache"
    write_cache(location, samples.values(), spec=spec_of_kind(kind))
    return open_kind(location).digest


def _start(location: Path, kind: str, **environment: str) -> subprocess.Popen[bytes]:
    root = Path(storage_cases.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, storage_cases.__file__, str(location), str(COUNT), kind],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )


def _committed(location: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (location / "manifests").glob("[0-9]*.json")}


def _attempts(location: Path) -> set[str]:
    return {path.name for path in (location / "units").glob("[0-9]*")}


def _check(location: Path, before: dict[str, bytes], samples) -> dict[str, bytes]:
    """No unit is torn, none that was committed is gone or different."""
    after = _committed(location)
    assert before.items() <= after.items()
    if (location / "zarr.json").exists():
        report = verify_cache(location)
        assert not report.problems
        assert report.units + len(report.missing) in (0, UNITS)  # 0: killed before the plan
        cache = open_kind(location)
        for key in cache:
            assert_stored(samples[key], cache[key])
    return after


def _finish(location: Path, kind: str, samples, undisturbed: str) -> None:
    assert _start(location, kind).wait() == 0
    cache = open_kind(location)
    assert_holds(cache, samples.values())
    if kind == "tail":  # whose head carries the name of the attempt that won
        assert len(list((location / "head").glob("[0-9]*"))) == 1 or collect_garbage(location).removed
    else:
        assert cache.digest == undisturbed
    assert verify_cache(location).ok()
    collect_garbage(location, now=time.time() + 8 * 86400)
    assert len(_attempts(location)) == UNITS
    assert not list(location.rglob(".*.tmp"))
    assert verify_cache(location).ok()


@pytest.mark.faults
@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_between_two_steps_of_a_commit(tmp_path, kind, samples, undisturbed, name):
    location = tmp_path / "cache"
    writer = create_cache(location, spec_of_kind(kind))  # so that `create` is met at a manifest
    if writer.version.head is not None:
        writer.write_head(head_of(writer.spec))
    writer.plan([PlannedSample(key, 10) for key in samples], unit_positions=40)
    write_unit(writer, writer.pending()[0], samples)
    before = _committed(location)
    kills = 0
    while _start(location, kind, **{VARIABLE: name}).wait() == -signal.SIGKILL:
        before = _check(location, before, samples)
        kills += 1
        if kills == 3:
            break
    assert kills
    _finish(location, kind, samples, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["create:begin", "create:written", "create:linked", "create:synced"])
def test_killed_while_the_cache_is_created(tmp_path, kind, samples, undisturbed, name):
    location = tmp_path / "cache"
    assert _start(location, kind, **{VARIABLE: name}).wait() == -signal.SIGKILL
    _finish(location, kind, samples, undisturbed)


HEAD_POINTS = ("create:begin", "create:written", "create:linked", "create:synced", "head:objects", "head:created")


@pytest.mark.faults
@pytest.mark.parametrize("name", [*HEAD_POINTS, "tree:half", "tree:files"])
def test_killed_while_the_head_is_written(tmp_path, kind, samples, undisturbed, name):
    """At every object of the head in turn: with each kill at least one more is there, until the head is."""
    if kind == "v1" or (kind == "exact" and name.startswith("tree")):
        pytest.skip("writes no such object")
    location = tmp_path / "cache"
    create_cache(location, spec_of_kind(kind))
    kills = 0
    while kills < 40 and not (location / "head" / "head.json").exists():
        assert _start(location, kind, **{VARIABLE: name}).wait() == -signal.SIGKILL
        kills += 1
        assert not verify_cache(location).problems
        if kills > 2 and name in ("create:begin", "create:written", "tree:half", "tree:files", "head:objects"):
            break  # nothing becomes durable before these
    _finish(location, kind, samples, undisturbed)


@pytest.mark.faults
def test_killed_at_random(tmp_path, kind, samples, undisturbed, record_property):
    """At least half of the kills fall between the first data write of a unit and its commit."""
    generator = random.Random(0)
    kills = inside = stores = 0
    while kills < KILLS:
        location = tmp_path / f"cache-{stores}"
        stores += 1
        before: dict[str, bytes] = {}
        while kills < KILLS and len(before) < UNITS:
            known = _attempts(location)
            process = _start(location, kind)
            wanted = generator.choice((1, 1, 1, 2))
            while process.poll() is None and len(_attempts(location) - known) < wanted:
                time.sleep(0.0005)
            time.sleep(generator.uniform(0, 0.03))
            process.kill()
            if process.wait() != -signal.SIGKILL:
                before = _check(location, before, samples)
                continue
            kills += 1
            before = _check(location, before, samples)
            orphans = {name.split(".")[0] for name in _attempts(location) - known} - {n[:-5] for n in before}
            inside += bool(orphans)
        _finish(location, kind, samples, undisturbed)
    record_property("kills", kills)
    record_property("between_first_write_and_commit", inside)
    print(f"{kills} kills, {inside} between the first data write and the commit, {stores} stores")
    assert inside * 2 >= kills
