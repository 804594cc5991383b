"""Several processes on one cache: nothing lost, nothing twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading

import pytest
from memory_store import MemoryStore
from storage_cases import assert_holds, key_of, sample_of, spec_of, write_unit

from storage.maintenance.gc import collect_garbage
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample, read_plans
from storage.reader import open_cache
from storage.writer import create_cache

COUNT = 80
WORKERS = 4


def _dump(location, worker, numbers, barrier, results):
    """Plan some samples, then commit what is pending in an order of one's own."""
    samples = {sample.key: sample for sample in (sample_of(number, 4) for number in range(COUNT))}
    keys = [sample_of(number, 1).key for number in numbers]
    barrier.wait()
    writer = create_cache(location, spec_of())
    added = writer.plan([PlannedSample(key, 4) for key in keys], unit_positions=16)
    won = []
    while pending := writer.pending():
        random.Random(worker).shuffle(pending)
        for unit in pending:
            if not writer.is_committed(unit.name) and write_unit(writer, unit, samples):
                won.append(unit.name)
    results.put((added, won))


@pytest.mark.faults
@pytest.mark.parametrize("overlap", ["same", "overlapping", "disjoint"])
def test_four_writers(tmp_path, overlap):
    location = tmp_path / "cache"
    numbers = list(range(COUNT))
    shares = {
        "same": [numbers] * WORKERS,
        "overlapping": [numbers[start : start + 50] for start in (0, 10, 20, 30)],
        "disjoint": [numbers[start::WORKERS] for start in range(WORKERS)],
    }[overlap]
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(WORKERS), context.Queue()
    workers = [
        context.Process(target=_dump, args=(location, worker, share, barrier, results))
        for worker, share in enumerate(shares)
    ]
    for process in workers:
        process.start()
    outcomes = [results.get(timeout=120) for _ in workers]
    for process in workers:
        process.join()
        assert process.exitcode == 0
    assert sum(added for added, _ in outcomes) == COUNT
    won = [name for _, names in outcomes for name in names]
    assert len(won) == len(set(won))
    units = [unit for units in read_plans(create_cache(location, spec_of()).store) for unit in units]
    assert sorted(won) == sorted(unit.name for unit in units)
    keys = [key for unit in units for key in unit.keys]
    assert len(keys) == len(set(keys)) == COUNT
    assert_holds(open_cache(location), [sample_of(number, 4) for number in numbers])
    assert verify_cache(location).ok()
    assert collect_garbage(location).removed == []  # a loser takes its own data away


def test_the_loser_of_a_plan_reads_it_again(tmp_path, monkeypatch):
    """Another planner creates the next plan between our reading and our creating."""
    from storage.store.local import LocalStore

    location = tmp_path / "cache"
    writer = create_cache(location, spec_of())
    original = LocalStore.create
    others = [[sample_of(number, 1).key for number in (0, 1)]]

    def create(self, path, data):
        if path.startswith("plans/") and others:
            keys = others.pop()
            create_cache(location, spec_of()).plan([PlannedSample(key, 1) for key in keys])
        return original(self, path, data)

    monkeypatch.setattr(LocalStore, "create", create)
    keys = [sample_of(number, 1).key for number in (1, 2)]
    assert writer.plan([PlannedSample(key, 1) for key in keys]) == 1
    assert [unit.keys for unit in writer.units()] == [
        (sample_of(0, 1).key, sample_of(1, 1).key),
        (sample_of(2, 1).key,),
    ]


def test_garbage_that_is_collected_under_a_writer(tmp_path, monkeypatch):
    """gc takes the attempt of a loser while it still writes: the loser ends well."""
    import shutil

    from storage.store.local import LocalStore

    location = tmp_path / "cache"
    writer = create_cache(location, spec_of())
    sample = sample_of(0)
    writer.plan([PlannedSample(sample.key, 10)])
    (unit,) = writer.pending()
    original = LocalStore.write_tree

    def write_tree(self, prefix, files):
        original(self, prefix, files)
        if not writer.is_committed(unit.name):
            monkeypatch.undo()
            assert write_unit(create_cache(location, spec_of()), unit, {sample.key: sample})
            shutil.rmtree(location / prefix)
            raise OSError(2, "No such file or directory")

    from storage.errors import StoreError

    def failing(self, prefix, files):
        try:
            write_tree(self, prefix, files)
        except OSError as error:
            raise StoreError(str(error)) from None

    monkeypatch.setattr(LocalStore, "write_tree", failing)
    assert write_unit(writer, unit, {sample.key: sample}) is False
    assert verify_cache(location).ok()


def test_garbage_collection_takes_nothing_that_may_be_committed(tmp_path):
    location = tmp_path / "cache"
    writer = create_cache(location, spec_of())
    samples = {sample.key: sample for sample in (sample_of(number) for number in range(2))}
    writer.plan([PlannedSample(key, 10) for key in samples], unit_positions=10)
    first, second = writer.pending()
    write_unit(writer, first, samples)
    units = location / "units"
    lost = f"{first.name}.20200101T000000Z-0000000000000000"
    old = f"{second.name}.20200101T000000Z-0000000000000000"
    young = f"{second.name}.29990101T000000Z-0000000000000000"
    for name in (lost, old, young):
        (units / name).mkdir()
        (units / name / "zarr.json").write_text("data")
    temporary = location / "manifests" / ".000000-000001.json.0000000000000000.tmp"
    temporary.write_text("half")
    fresh = location / "manifests" / ".000000-000001.json.0000000000000001.tmp"
    fresh.write_text("half")
    os.utime(temporary, (1e9, 1e9))
    expected = {f"units/{lost}", f"units/{old}", f"manifests/{temporary.name}"}
    report = collect_garbage(location, dry_run=True)
    assert {item.path for item in report.removed} == expected
    assert {item.path for item in report.young} == {f"units/{young}"}
    assert (units / lost).exists()
    assert collect_garbage(location).bytes == 12
    assert not (units / lost).exists()
    assert (units / young).exists()
    assert fresh.exists()
    assert json.loads((location / "manifests" / f"{first.name}.json").read_text())["unit"] == first.name
    assert collect_garbage(location).removed == []
    write_unit(writer, second, samples)
    assert verify_cache(location).ok()


class LockStepped(MemoryStore):
    """A store in which `parties` creations of an object whose path begins with `meet` always meet."""

    def __init__(self, meet, parties):
        super().__init__()
        self.loses_answers = False
        self._meet = meet
        self._barrier = threading.Barrier(parties)

    def create(self, path, data):
        if path.startswith(self._meet) and path not in self.objects:
            self._barrier.wait(timeout=30)
        return super().create(path, data) and not self.loses_answers


def _threads(count, work):
    results: list = [None] * count

    def run(number):
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("lose_answers", [False, True])
def test_true_race_for_a_unit(lose_answers):
    store = LockStepped("manifests/000000", 3)
    sample = sample_of(0)
    writers = [create_cache(store, spec_of()) for _ in range(3)]
    writers[0].plan([PlannedSample(sample.key, 10)])
    store.loses_answers = lose_answers
    (unit,) = writers[0].units()
    won = _threads(3, lambda number: write_unit(writers[number], unit, {sample.key: sample}))
    assert sorted(won) == [False, False, True]
    attempts = [name for name in store.names("units") if name.startswith(unit.name)]
    assert len(attempts) == 1
    assert attempts[0].encode().split(b".")[1] in store.objects[f"manifests/{unit.name}.json"]


def test_true_race_for_a_plan():
    store = LockStepped("plans/000000", 2)
    writers = [create_cache(store, spec_of()) for _ in range(2)]
    shares = [range(6), range(3, 9)]
    added = _threads(
        2,
        lambda number: writers[number].plan([PlannedSample(key_of(n), 10) for n in shares[number]], unit_positions=20),
    )
    assert sorted(added) == [3, 6]
    keys = [key for unit in writers[0].units() for key in unit.keys]
    assert sorted(keys) == sorted(key_of(number) for number in range(9))
