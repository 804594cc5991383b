"""Planning takes the memory of a plan or two and 100 bytes a sample, the index 110 bytes a sample: 50 MB for 500,000."""

import hashlib
import tracemalloc

import pytest
from storage_cases import spec_of

from storage.errors import CorruptObject
from storage.index import SKIPPED, Entry, Index, IndexRows, build_index, fresh_header, save_index
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


def test_planning_takes_100_bytes_for_each_further_sample(tmp_path):
    plan_and_read(tmp_path / "warm", 100)
    small = plan_and_read(tmp_path / "small", PLAN_SAMPLES)
    large = plan_and_read(tmp_path / "large", 3 * PLAN_SAMPLES)
    assert large < small + 100 * 2 * PLAN_SAMPLES


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


def test_an_index_takes_110_bytes_for_each_sample(tmp_path):
    def build(count):
        rows = IndexRows()
        for unit in range(count // 1_000):
            rows.add(f"000000-{unit:06d}", keys[1_000 * unit : 1_000 * (unit + 1)], range(1_000))
        header = fresh_header("0" * 64, [], "0" * 64, None, count, 0)
        assert save_index(tmp_path / "keys.bin", build_index(header, rows))

    keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(60_000)]
    peaks = [peak(build, count)[1] for count in (1_000, 1_000, 60_000)]  # the first one warms caches
    index = Index.open(tmp_path / "keys.bin")
    assert index.find(keys[59_017]) == Entry("000000-000059", 17)
    assert len(list(index.entries())) == 60_000
    assert peaks[2] < peaks[1] + 110 * 59_000


def test_a_key_that_was_added_twice_is_where_it_was_added_last():
    keys = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(4)]
    rows = IndexRows()
    rows.add("000000-000000", keys[:3], [0, SKIPPED, 1])
    rows.add("000001-000002", keys[1:], range(3))
    index = Index(b"".join(build_index(fresh_header("0" * 64, [], "0" * 64, None, 4, 0), rows)), "index")
    places = [Entry("000000-000000", 0), *(Entry("000001-000002", number) for number in range(3))]
    assert dict(index.entries()) == dict(zip(keys, places, strict=True))
    assert index.find(keys[1].upper()) is None


def test_an_index_without_rows():
    index = Index(b"".join(build_index(fresh_header("0" * 64, [], "0" * 64, None, 0, 0), IndexRows())), "index")
    assert list(index.entries()) == []


def test_keys_that_end_in_zeros_are_told_apart(tmp_path):
    keys = ["ab" * 31 + "00", "ab" * 30 + "0000", "00" * 32, "ab" * 31 + "01"]
    writer = create_cache(tmp_path / "cache", spec_of())
    assert writer.plan([PlannedSample(key, 8) for key in (*keys, *keys)]) == 4
    (unit,) = writer.units()
    assert unit.keys == tuple(keys)
    assert writer.plan([PlannedSample(key, 8) for key in keys[::-1]]) == 0
    rows = IndexRows()
    rows.add("000000-000000", keys, range(4))
    index = Index(b"".join(build_index(fresh_header("0" * 64, [], "0" * 64, None, 4, 0), rows)), "index")
    assert [index.find(key) for key in keys] == [Entry("000000-000000", number) for number in range(4)]
