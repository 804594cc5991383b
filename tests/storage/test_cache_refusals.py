"""One malformed input per rule of the format, each refused with its name and store."""

from __future__ import annotations

import dataclasses
import pickle
import re

import numpy as np
import pytest
from storage_cases import key_of, sample_of, spec_of, write_cache

from storage.errors import (
    CacheError,
    CacheMissing,
    CorruptObject,
    InvalidSpec,
    InvalidTargets,
    SpecMismatch,
    StaleAttempt,
    UnsupportedFormat,
)
from storage.maintenance.gc import collect_garbage
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.spec import root_document
from storage.writer import create_cache


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "spec.top_k: expected a whole number from 1"),
        ({"top_k": 2.5}, "spec.top_k"),
        ({"top_k": None}, "spec.top_k"),
        ({"top_k": 501}, "501 entries cannot be stored: there are 500 shared ids"),
        ({"vocabulary_size": -1}, "spec.vocabulary_size"),
        ({"temperatures": []}, "spec.temperatures"),
        ({"temperatures": [2, 1]}, "ascending"),
        ({"temperatures": [0, 1]}, "positive"),
        ({"temperatures": "1"}, "spec.temperatures"),
        ({"shared_ids": [[0, 501]]}, r"within \[0, 500\)"),
        ({"shared_ids": [[10, 20], [5, 8]]}, "ascending, disjoint"),
        ({"shared_ids": [3]}, "pairs"),
        ({"format_version": 3}, "this program writes 1 and 2, got 3"),
        ({"format_version": True}, "this program writes 1 and 2, got True"),
        (
            {"format_version": 1, "targets": "exact"},
            "spec.targets: format version 1 has no such field; state format_version: 2",
        ),
        ({"format_version": 1, "tail_rank": 4}, "spec.tail_rank: format version 1 has no such field"),
        ({"teacher": {1, 2}}, "JSON values only"),
        ({"teacher": float("nan")}, "JSON values only"),
    ],
)
def test_impossible_spec(tmp_path, change, message):
    with pytest.raises(InvalidSpec, match=message):
        create_cache(tmp_path / "cache", {**spec_of(), **change})
    assert not (tmp_path / "cache").exists()


def test_spec_that_is_no_mapping(tmp_path):
    with pytest.raises(InvalidSpec, match="must be a mapping, got list"):
        create_cache(tmp_path / "cache", [])


def test_spec_mismatch_lists_every_difference(tmp_path):
    create_cache(tmp_path / "cache", spec_of(student={"roles": {"eos": 3}}))
    changed = spec_of(top_k=4, student={"roles": {"eos": 4, "pad": 1}})
    with pytest.raises(SpecMismatch) as caught:
        create_cache(tmp_path / "cache", changed)
    assert caught.value.differences == [
        ("student.roles.eos", 3, 4),
        ("student.roles.pad", SpecMismatch.ABSENT, 1),
        ("top_k", 8, 4),
    ]
    assert "student.roles.eos: the cache has 3, the request has 4\n" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_equal_specs_open_the_cache_whatever_the_kind_of_number(tmp_path):
    create_cache(tmp_path / "cache", spec_of(nodes=(1, 2)))
    assert create_cache(tmp_path / "cache", spec_of(nodes=(1.0, 2.0))).spec["temperatures"] == [1, 2]


def _changed(name, change):
    sample = sample_of(0)
    array = getattr(sample.targets, name).copy()
    result = change(array)
    return dataclasses.replace(
        sample, targets=dataclasses.replace(sample.targets, **{name: array if result is None else result})
    )


def _set(index, value):
    def change(array):
        array[index] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda a: a.astype(np.int64), "ids must be uint32 of shape"),
        ("ids", lambda a: a[:, :7], "ids must be uint32 of shape"),
        ("ids", lambda a: a.tolist(), "got list"),
        ("ids", _set((2, 1), 500), r"not below vocabulary_size 500 \(position 2 of 10\)"),
        ("ids", lambda a: a[:, [0, 0, 2, 3, 4, 5, 6, 7]], "is given twice"),
        ("logprobs", _set((3, 0), np.nan), r"not finite \(position 3"),
        ("logprobs", _set((3, 7), -np.inf), "not finite"),
        ("logprobs", _set((4, 0), 0.5), "above 0"),
        ("logprobs", _set((4, 7), -3e8), "too low"),
        ("logprobs", lambda a: a[:, ::-1].copy(), "do not descend"),
        ("tail", _set((1, 2), np.nan), "not a number"),
        ("tail", _set((1, 2), 17), "above 16"),
        ("tail", _set((1, 2), -np.inf), "empty at one temperature"),
        ("target_ids", _set(5, 500), "not below vocabulary_size"),
        ("target_ids", lambda a: (a + 1) % 500, "not among its ids"),
        ("target_logprobs", _set(5, np.inf), "not finite"),
        ("target_logprobs", _set(5, 1), "above 0"),
        ("target_logprobs", _set(5, -1e6), "below -65504"),
        ("soft", lambda a: a.astype(np.uint8), "soft must be bool"),
    ],
)
def test_impossible_targets(tmp_path, name, change, message):
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(0), 10)])
    (unit,) = writer.pending()
    with pytest.raises(InvalidTargets, match=message), writer.unit(unit) as out:
        out.append(_changed(name, change))
    assert writer.pending() == [unit]
    assert not list((tmp_path / "cache" / "units").glob("0*"))


def test_ids_outside_the_shared_ones(tmp_path):
    writer = create_cache(tmp_path / "cache", {**spec_of(), "shared_ids": [[0, 5], [10, 20]]})
    writer.plan([PlannedSample(key_of(0), 10)])
    with pytest.raises(InvalidTargets, match="shared_ids"), writer.unit(writer.pending()[0]) as out:
        out.append(sample_of(0))


def test_keys_of_a_unit(tmp_path):
    writer = create_cache(tmp_path / "cache", spec_of())
    with pytest.raises(InvalidTargets, match="64 lower-case hex digits"):
        writer.plan([PlannedSample("ABC", 1)])
    with pytest.raises(InvalidTargets, match="unit_positions"):
        writer.plan([PlannedSample(key_of(0), 1)], unit_positions=0)
    writer.plan([PlannedSample(key_of(0), 10), PlannedSample(key_of(1), 10)])
    (unit,) = writer.pending()
    with pytest.raises(InvalidTargets, match="has no sample"), writer.unit(unit) as out:
        out.skip(key_of(2), "why")
    with pytest.raises(InvalidTargets, match="already appended or skipped"), writer.unit(unit) as out:  # noqa: PT012
        out.append(sample_of(0))
        out.skip(key_of(0), "why")
    with pytest.raises(InvalidTargets, match="1 of 2 samples were neither"), writer.unit(unit) as out:
        out.append(sample_of(0))
    with pytest.raises(InvalidTargets, match="statistic mass"), writer.unit(unit) as out:  # noqa: PT012
        out.append(sample_of(0))
        out.skip(key_of(1), "why")
        out.statistics["mass"] = float("nan")
    with pytest.raises(RuntimeError, match="the teacher failed"), writer.unit(unit) as out:  # noqa: PT012
        out.append(sample_of(0))
        out.append(sample_of(1))
        raise RuntimeError("the teacher failed")
    assert writer.pending() == [unit]


def test_an_old_attempt_is_not_committed(tmp_path, monkeypatch):
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(0), 10)])
    (unit,) = writer.pending()
    times = iter([0.0, 7 * 86400.0])
    monkeypatch.setattr("storage.writer.time.time", lambda: next(times))
    with pytest.raises(StaleAttempt, match="dump the unit again"), writer.unit(unit) as out:
        out.append(sample_of(0))
    assert writer.pending() == [unit]


def test_locations_without_a_cache(tmp_path):
    with pytest.raises(CacheMissing, match=r"no cache at .*missing/zarr\.json not found; check the path"):
        open_cache(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises((CacheMissing, OSError), match="file"):
        open_cache(tmp_path / "file")


def test_another_zarr_group_is_no_cache(tmp_path):
    (tmp_path / "zarr.json").write_text('{"attributes":{},"node_type":"group","zarr_format":3}\n')
    with pytest.raises(UnsupportedFormat, match="not a firstsight-cache"):
        open_cache(tmp_path)
    (tmp_path / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(CorruptObject, match=r"zarr\.json"):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (3, "format version 3, this program reads 1 and 2; a newer version of this program wrote it: install that one"),
        (0, "format version 0, this program reads 1 and 2; no release of this program wrote it"),
        ("1", "format version '1', this program reads 1 and 2; no release"),
        (True, "format version True, this program reads 1 and 2; no release"),
        (None, "format version None, this program reads 1 and 2; no release"),
    ],
)
def test_an_unknown_format_version_is_refused(tmp_path, version, advice):
    write_cache(tmp_path, [])
    (tmp_path / "zarr.json").write_bytes(root_document({**spec_of(), "format_version": version}))
    for read in (open_cache, verify_cache, cache_status, collect_garbage, lambda path: create_cache(path, spec_of())):
        with pytest.raises(UnsupportedFormat, match=re.escape(advice)):
            read(tmp_path)


def test_a_plan_of_more_samples_than_the_format_allows(tmp_path, monkeypatch):
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(number), 10) for number in range(4)])
    monkeypatch.setattr("storage.plan.MAX_PLAN_SAMPLES", 3)
    with pytest.raises(CorruptObject, match=r"plans/000000\.json: the plan has 4 samples, the format allows 3"):
        writer.units()


@pytest.mark.parametrize("positions", [-1, 2**24 + 1, 2**70])
def test_an_impossible_number_of_positions(tmp_path, positions):
    writer = create_cache(tmp_path / "cache", spec_of())
    with pytest.raises(InvalidTargets, match="expected 0 to 16,777,216 positions, got"):
        writer.plan([PlannedSample(key_of(0), positions)])
    assert writer.units() == []


def test_a_place_that_holds_something_else_is_left_alone(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    (place / "train.jsonl").write_text("{}")
    (place / "units").mkdir()
    with pytest.raises(
        CacheError, match=r"data is not a cache, and not empty: it holds train\.jsonl; give cache\.path"
    ):
        create_cache(place, spec_of())
    assert sorted(path.name for path in place.iterdir()) == ["train.jsonl", "units"]
    (place / "train.jsonl").unlink()
    create_cache(place, spec_of())  # as a creation that was cut off leaves it
    create_cache(place, spec_of())
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".DS_Store").write_text("")
    create_cache(empty, spec_of())
