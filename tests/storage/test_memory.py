"""Planning and opening cost some tens of bytes a sample, whatever Python's strings and dictionaries would take."""

import hashlib
import tracemalloc

import numpy as np
from storage_cases import spec_of

from storage.index import ROW, build_index, fresh_header, save_index
from storage.plan import PlannedSample
from storage.writer import create_cache

COUNT = 60_000


def peak(work):
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_plan_costs_tens_of_bytes_a_sample(tmp_path):
    keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(COUNT)]
    writer = create_cache(tmp_path / "cache", spec_of())
    samples = (PlannedSample(key, 8) for key in keys)
    added, used = peak(lambda: writer.plan(samples, unit_positions=4096))
    assert added == COUNT
    assert used < 20e6 + 150 * COUNT  # a plan object as JSON, several times over; and the keys
    pending, used = peak(writer.pending)
    assert [key for unit in pending for key in unit.keys] == keys
    assert used < 20e6 + 50 * COUNT
    assert sum(map(len, pending)) == COUNT
    again = (PlannedSample(key, 8) for key in (*keys[::-1], *keys[:5]))
    assert writer.plan(again, unit_positions=4096) == 0


def test_an_index_costs_tens_of_bytes_a_sample(tmp_path):
    rows = np.zeros(COUNT, dtype=ROW)
    rows["key"] = [hashlib.sha256(number.to_bytes(8, "little")).digest() for number in range(COUNT)]
    rows["sample"] = np.arange(COUNT)
    header = fresh_header("0" * 64, [], "0" * 64, None, COUNT, 0)
    saved, used = peak(lambda: save_index(tmp_path / "keys.bin", build_index(header, rows)))
    assert saved
    assert used < 8e6 + 30 * COUNT
