"""Planning takes the memory of a plan or two, an index that of a page, however many samples there are."""

import hashlib
import tracemalloc

import pytest
from storage_cases import spec_of

from storage.errors import CorruptObject
from storage.index import Entry, Index, IndexRows, build_index, fresh_header, save_index
from storage.plan import PLAN_SAMPLES, PlannedSample
from storage.writer import create_cache


def peak(work, *arguments):
    tracemalloc.start()
    try:
        result = work(*arguments)
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def plan_and_read(location, count):
    keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(count)]
    writer = create_cache(location, spec_of())

    def work():
        assert writer.plan((PlannedSample(key, 8) for key in keys), unit_positions=4096) == count
        pending = writer.pending()
        assert sum(map(len, pending)) == count
        assert all(
            key == planned for key, planned in zip(keys, (k for unit in pending for k in unit.keys), strict=True)
        )
        assert writer.plan((PlannedSample(key, 8) for key in (*reversed(keys), *keys[:5])), unit_positions=4096) == 0

    return peak(work)[1]


def test_planning_takes_no_more_memory_for_more_samples(tmp_path):
    plan_and_read(tmp_path / "warm", 100)
    small = plan_and_read(tmp_path / "small", PLAN_SAMPLES)
    large = plan_and_read(tmp_path / "large", 3 * PLAN_SAMPLES)
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
    with pytest.raises(CorruptObject, match=r"plans/000000\.json"):
        units[0].keys  # noqa: B018


def test_an_index_takes_no_more_memory_for_more_samples(tmp_path):
    peaks = []
    for count in (1_000, 1_000, 60_000):  # the first one warms caches
        rows = IndexRows()
        for unit in range(count // 1_000):
            keys = [
                hashlib.sha256(number.to_bytes(8, "little")).hexdigest()
                for number in range(1_000 * unit, 1_000 * (unit + 1))
            ]
            rows.add(f"000000-{unit:06d}", keys, range(1_000))
        header = fresh_header("0" * 64, [], "0" * 64, None, count, 0)
        saved, used = peak(save_index, tmp_path / "keys.bin", build_index(header, rows))
        assert saved
        peaks.append(used)
    index = Index.open(tmp_path / "keys.bin")
    assert index.find(keys[17]) == Entry("000000-000059", 17)
    assert len(list(index.entries())) == 60_000
    assert peaks[2] < peaks[1] + 200_000
