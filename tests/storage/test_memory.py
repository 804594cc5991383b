"""Planning takes the memory of a plan or two, opening some tens of bytes a sample, whatever Python's strings would take."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from storage_cases import spec_of

from storage.errors import CorruptObject
from storage.index import ROW, build_index, fresh_header, save_index
from storage.plan import PLAN_SAMPLES, PlannedSample
from storage.writer import create_cache

COUNT = 60_000


def peak(work):
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_planning_takes_no_more_memory_for_more_samples(tmp_path):
    peaks = []
    for count in (PLAN_SAMPLES, PLAN_SAMPLES, 3 * PLAN_SAMPLES):  # the first one warms caches
        keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(count)]
        writer = create_cache(tmp_path / f"cache{len(peaks)}", spec_of())
        samples = (PlannedSample(key, 8) for key in keys)
        added, planning = peak(lambda: writer.plan(samples, unit_positions=4096))
        assert added == count
        pending, listing = peak(writer.pending)
        assert sum(map(len, pending)) == count
        expected = iter(keys)
        same, reading = peak(lambda: all(key == next(expected) for unit in pending for key in unit.keys))
        assert same
        again = (PlannedSample(key, 8) for key in (*keys[::-1], *keys[:5]))
        planned, replanning = peak(lambda: writer.plan(again, unit_positions=4096))
        assert planned == 0
        peaks.append(max(planning, listing, reading, replanning))
    _, small, large = peaks
    assert large < small + 3 * 32 * PLAN_SAMPLES  # the keys of two plans are held


def test_units_tell_their_keys_whatever_plan_was_read_last(tmp_path):
    keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(12)]
    writer = create_cache(tmp_path / "cache", spec_of())
    for start in range(0, 12, 3):  # four plans
        writer.plan([PlannedSample(key, 8) for key in keys[: start + 3]], unit_positions=16)
    units = writer.pending()
    backwards = [key for unit in units[::-1] for key in unit.keys[::-1]]
    assert backwards[::-1] == keys
    (tmp_path / "cache" / "plans" / "000000.json").write_bytes(b"{}")
    assert units[-1].keys == tuple(keys[11:])
    assert units[-3].keys == tuple(keys[8:9])
    with pytest.raises(CorruptObject, match="plans/000000.json"):
        units[0].keys  # noqa: B018


def test_an_index_costs_tens_of_bytes_a_sample(tmp_path):
    rows = np.zeros(COUNT, dtype=ROW)
    rows["key"] = [hashlib.sha256(number.to_bytes(8, "little")).digest() for number in range(COUNT)]
    rows["sample"] = np.arange(COUNT)
    header = fresh_header("0" * 64, [], "0" * 64, None, COUNT, 0)
    saved, used = peak(lambda: save_index(tmp_path / "keys.bin", build_index(header, rows)))
    assert saved
    assert used < 8e6 + 30 * COUNT
