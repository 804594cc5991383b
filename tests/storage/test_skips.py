"""A skip is a decision of one run: from version 2 on a sample may be planned again, and the later unit decides."""

from __future__ import annotations

import json

import pytest
from storage_cases import (
    assert_holds,
    head_of,
    key_of,
    open_kind,
    sample_of_kind,
    spec_of,
    spec_of_kind,
    write_cache,
    write_unit,
)

from storage.errors import SkippedSample, SpecMismatch, UnsupportedFormat
from storage.maintenance.gc import collect_garbage
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.units.attempts import attempt_name
from storage.writer import create_cache

PLANNED = [PlannedSample(key_of(number), 10) for number in range(6)]


@pytest.fixture(params=["v2", "tail", "exact"])
def kind(request):
    return request.param


@pytest.fixture
def writer(tmp_path, kind):
    """A cache in which samples 4 and 5 were skipped."""
    writer = create_cache(tmp_path / "cache", spec_of_kind(kind))
    if writer.version.head is not None:
        writer.write_head(head_of(writer.spec))
    assert writer.plan(PLANNED, unit_positions=60) == 6
    commit(writer, kind, range(4))
    return writer


def commit(writer, kind, numbers):
    samples = {key_of(number): sample_of_kind(kind, number) for number in numbers}
    for unit in writer.pending():
        write_unit(writer, unit, samples)


def test_a_skipped_sample_is_planned_again_only_when_asked(tmp_path, writer, kind):
    assert writer.plan(PLANNED) == 0
    assert writer.plan(PLANNED, retry_skipped=True) == 2
    assert writer.plan(PLANNED, retry_skipped=True) == 0  # they are in a unit that is not committed
    cache = open_kind(tmp_path / "cache")
    assert set(cache.skipped()) == {key_of(4), key_of(5)}
    assert (cache_status(tmp_path / "cache").planned_samples, len(cache_status(tmp_path / "cache").skipped)) == (6, 2)
    commit(writer, kind, [4])
    cache = open_kind(tmp_path / "cache")
    assert_holds(cache, [sample_of_kind(kind, number) for number in range(5)])
    assert cache.skipped() == {key_of(5): "no answer position"}
    assert key_of(4) in cache
    with pytest.raises(SkippedSample):
        cache[key_of(5)]
    status = cache_status(tmp_path / "cache")
    assert (status.planned_samples, status.samples, list(status.skipped)) == (6, 5, [key_of(5)])
    assert verify_cache(tmp_path / "cache").ok()
    assert writer.plan(PLANNED, retry_skipped=True) == 1
    commit(writer, kind, [5])
    assert len(open_kind(tmp_path / "cache")) == 6
    assert open_kind(tmp_path / "cache").skipped() == {}
    assert cache_status(tmp_path / "cache").skipped == {}
    assert writer.plan(PLANNED, retry_skipped=True) == 0
    assert verify_cache(tmp_path / "cache").ok()


def test_version_1_plans_a_sample_once(tmp_path):
    writer = create_cache(tmp_path / "cache", spec_of_kind("v1"))
    writer.plan(PLANNED, unit_positions=60)
    commit(writer, "v1", range(4))
    with pytest.raises(
        UnsupportedFormat, match="format version 1, in which a skipped sample is never tried again; dump to another"
    ):
        writer.plan(PLANNED, retry_skipped=True)
    assert writer.plan(PLANNED) == 0


def test_a_cache_of_version_1_is_finished_and_grown_in_its_own_version(tmp_path):
    samples = {key_of(number): sample_of_kind("v1", number) for number in range(6)}
    writer = create_cache(tmp_path / "cache", spec_of_kind("v1"))
    writer.plan(PLANNED[:4], unit_positions=20)
    write_unit(writer, writer.pending()[0], samples)
    again = create_cache(tmp_path / "cache", spec_of())  # states no version: follows the cache
    assert again.version.number == 1
    assert again.plan(PLANNED) == 2
    for unit in again.pending():
        write_unit(again, unit, samples)
    assert_holds(open_kind(tmp_path / "cache"), samples.values())
    assert verify_cache(tmp_path / "cache").ok()
    write_cache(tmp_path / "plain", samples.values(), spec=spec_of_kind("v1"), unit_positions=20)
    for name in ("000000-000000", "000000-000001"):
        one, other = (
            json.loads((tmp_path / each / "manifests" / f"{name}.json").read_text()) for each in ("cache", "plain")
        )
        assert one["content_digest"] == other["content_digest"]
    with pytest.raises(SpecMismatch) as caught:
        create_cache(tmp_path / "cache", spec_of(top_k=4))
    assert caught.value.differences == [("top_k", 8, 4)]


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (spec_of(turns="all"), "turns = 'all'"),
        (spec_of_kind("tail"), "tail_rank = 3"),
        (spec_of_kind("exact"), "targets = 'exact'"),
        (spec_of(format_version=2), "format version 2"),
    ],
)
def test_what_version_1_has_no_place_for_is_refused(tmp_path, spec, asked):
    write_cache(tmp_path / "cache", [sample_of_kind("v1", 0)], spec=spec_of_kind("v1"))
    with pytest.raises(UnsupportedFormat) as caught:
        create_cache(tmp_path / "cache", spec)
    assert f"is a cache of format version 1, which has no place for {asked}" in str(caught.value)
    assert "use another cache path, or the settings that this cache was made with" in str(caught.value)


@pytest.mark.parametrize("complete", [True, False])
def test_attempts_at_the_head_of_a_tail_are_garbage(tmp_path, complete):
    writer = create_cache(tmp_path / "cache", spec_of_kind("tail"))
    if complete:
        writer.write_head(head_of(writer.spec))
    for name in ("20200101T000000Z-0123456789abcdef", attempt_name()):
        writer.store.write_tree(f"head/{name}", {"zarr.json": b"{}"})
    dry = collect_garbage(tmp_path / "cache", dry_run=True)
    assert (len(dry.removed), len(dry.young)) == ((2, 0) if complete else (1, 1))
    collect_garbage(tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "head").glob("2*"))) == 1  # the head, or the young one
    assert collect_garbage(tmp_path / "cache").removed == []
    assert verify_cache(tmp_path / "cache").ok()
