"""What goes in comes out: within the stated error bounds, and the same every time."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import (
    NODES,
    assert_holds,
    assert_stored,
    key_of,
    open_kind,
    sample_of,
    sample_of_kind,
    spec_of,
    spec_of_kind,
    write_cache,
    write_unit,
)

from storage.errors import InvalidTargets, MissingSample, SkippedSample, UnknownUnit
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.targets import SampleTargets, Targets, Turn
from storage.writer import create_cache


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.integers(1, 400),
    share=st.floats(0, 1),
    nodes=st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]), min_size=1, max_size=4, unique=True).map(sorted),
    lengths=st.lists(st.integers(0, 12), min_size=0, max_size=8),
    unit_positions=st.integers(1, 40),
    soft_share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_shape_of_cache(vocabulary, share, nodes, lengths, unit_positions, soft_share):
    spec = spec_of(vocabulary, max(1, int(vocabulary * share)), nodes)
    samples = [
        sample_of(number, length, spec=spec, soft_share=soft_share, hard=number % 2 == 0)
        for number, length in enumerate(lengths)
    ]
    with tempfile.TemporaryDirectory() as directory:
        write_cache(Path(directory, "cache"), samples, unit_positions=unit_positions, spec=spec)
        cache = open_cache(Path(directory, "cache"))
        assert_holds(cache, samples)
        assert cache.statistics().get("positions", 0) == sum(lengths)
        assert verify_cache(Path(directory, "cache")).ok()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_extreme_values(tmp_path_factory, data):
    """Gaps beyond 8 bits, values at zero, targets thousands of nats down, tails beyond their range."""
    spec = spec_of(40, 5, (1.0, 2.0))
    rows = data.draw(st.integers(1, 6))
    drop = st.one_of(st.floats(0, 0.125, width=32), st.floats(0, 40, width=32), st.floats(0, 20_000, width=32))
    drops = np.array([[data.draw(drop) for _ in range(5)] for _ in range(rows)], np.float32)
    logprobs = -np.cumsum(drops, axis=1, dtype=np.float32)
    ids = np.stack([np.random.default_rng(row).permutation(40)[:5] for row in range(rows)]).astype(np.uint32)
    tail = data.draw(st.sampled_from([-np.inf, -600.0, -3.0, 2.0]))
    sample = SampleTargets(
        key=key_of(0),
        hard=False,
        targets=Targets(
            ids=ids,
            logprobs=logprobs,
            tail=np.full((rows, 2), tail, np.float32),
            target_ids=ids[:, -1].copy(),
            target_logprobs=np.maximum(logprobs[:, -1], -60_000),
            soft=np.ones(rows, np.bool_),
        ),
    )
    path = tmp_path_factory.mktemp("extreme") / "cache"
    write_cache(path, [sample], spec=spec)
    assert_stored(sample, open_cache(path)[sample.key])


def test_many_distinct_ids_need_two_byte_extras(tmp_path):
    spec = spec_of(70_000, 70_000, (1.0,))
    sample = sample_of(0, 2, spec=spec)
    write_cache(tmp_path / "cache", [sample], spec=spec)
    assert_stored(sample, open_cache(tmp_path / "cache")[sample.key])


def test_k_equal_to_the_vocabulary_has_an_empty_tail(tmp_path):
    spec = spec_of(30, 30)
    samples = [sample_of(number, 5, spec=spec) for number in range(3)]
    write_cache(tmp_path / "cache", samples, spec=spec)
    cache = open_cache(tmp_path / "cache")
    assert_holds(cache, samples)
    assert np.isneginf(cache[key_of(0)].targets.tail).all()


def test_empty_plan_and_empty_cache(tmp_path):
    writer = create_cache(tmp_path / "cache", spec_of())
    assert writer.plan([]) == 0
    assert writer.units() == []
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 0
    assert list(cache.keys()) == []
    with pytest.raises(MissingSample, match="run fs-teacher dump"):
        cache[key_of(0)]
    with pytest.raises(MissingSample):
        cache["no key at all"]
    assert verify_cache(tmp_path / "cache").ok()


def test_unit_in_which_every_sample_is_skipped(tmp_path):
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(0), 3), PlannedSample(key_of(1), 3)])
    (unit,) = writer.pending()
    assert write_unit(writer, unit, {}) is True
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 0
    assert cache.skipped() == {key_of(0): "no answer position", key_of(1): "no answer position"}
    assert key_of(0) not in cache
    with pytest.raises(SkippedSample, match="no answer position"):
        cache[key_of(0)]
    assert verify_cache(tmp_path / "cache").ok()
    assert writer.pending() == []


def test_an_index_of_before_a_unit_was_dumped_again_is_no_damage(tmp_path):
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(1), 10)])
    (unit,) = writer.pending()
    write_unit(writer, unit, {})
    assert len(open_cache(tmp_path / "cache")) == 0  # leaves its index
    (tmp_path / "cache" / "manifests" / f"{unit.name}.json").unlink()
    write_unit(writer, unit, {key_of(1): sample_of(1)})
    assert verify_cache(tmp_path / "cache").ok()
    assert key_of(1) in open_cache(tmp_path / "cache")


def test_growing_appends_units_and_computes_nothing_again(tmp_path):
    samples = [sample_of(number) for number in range(10)]
    writer = write_cache(tmp_path / "cache", samples[:6])
    first = [(unit, unit.keys) for unit in writer.units()]
    assert writer.plan([PlannedSample(sample.key, 10) for sample in samples], unit_positions=40) == 4
    assert [(unit, unit.keys) for unit in writer.units()[: len(first)]] == first
    pending = writer.pending()
    assert [key for unit in pending for key in unit.keys] == [sample.key for sample in samples[6:]]
    assert pending[0].positions == 40
    for unit in pending:
        write_unit(writer, unit, {sample.key: sample for sample in samples})
    assert_holds(open_cache(tmp_path / "cache"), samples)
    assert writer.plan([PlannedSample(sample.key, 10) for sample in samples]) == 0


def test_content_digest_tells_content_not_history(tmp_path):
    samples = [sample_of(number) for number in range(8)]
    write_cache(tmp_path / "one", samples)
    writer = create_cache(tmp_path / "two", spec_of())
    writer.plan([PlannedSample(sample.key, 10) for sample in samples], unit_positions=40)
    for unit in reversed(writer.pending()):
        write_unit(writer, unit, {sample.key: sample for sample in samples})
    write_cache(tmp_path / "three", [*samples[:-1], sample_of(99)])
    one, two, three = (open_cache(tmp_path / name) for name in ("one", "two", "three"))
    assert one.digest == two.digest != three.digest
    for sample in samples:
        for first, second in zip(
            vars(one[sample.key].targets).values(), vars(two[sample.key].targets).values(), strict=True
        ):
            assert first.tobytes() == second.tobytes()


def test_units_can_be_read_one_by_one(tmp_path):
    samples = [sample_of(number) for number in range(8)]
    write_cache(tmp_path / "cache", samples)
    cache = open_cache(tmp_path / "cache")
    assert list(cache.units()) == ["000000-000000", "000000-000001"]
    found = [sample for name in cache.units() for sample in cache.read_unit(name)]
    assert [sample.key for sample in found] == [sample.key for sample in samples]
    for given_sample, found_sample in zip(samples, found, strict=True):
        assert_stored(given_sample, found_sample)
    with pytest.raises(ValueError, match="read-only"):
        found[0].targets.ids[0, 0] = 1
    for name in ("000000-000009", "../units", "nonsense"):
        with pytest.raises(UnknownUnit):
            cache.read_unit(name)
    assert cache.temperatures == NODES
    assert cache.top_k == 8
    assert cache.shared_mask().all()
    assert cache.spec["format_version"] == 2


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["v2", "tail", "exact"]),
    turns=st.lists(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4), max_size=6),
    unit_positions=st.integers(1, 20),
)
def test_any_turns(kind, turns, unit_positions):
    spec = spec_of_kind(kind)
    samples = []
    for number, each in enumerate(turns):
        sample = sample_of_kind(kind, number, sum(positions for positions, _ in each))
        several = tuple(Turn(*turn) for turn in each)
        hard = all(turn.hard for turn in several)
        samples.append(replace(sample, hard=hard, turns=several if len(several) > 1 else ()))
    with tempfile.TemporaryDirectory() as directory:
        write_cache(Path(directory, "cache"), samples, unit_positions=unit_positions, spec=spec)
        assert_holds(open_kind(Path(directory, "cache")), samples)
        assert_holds(open_kind(Path(directory, "cache"), scratch=Path(directory, "scratch")), samples)
        assert verify_cache(Path(directory, "cache")).ok()


def test_version_1_has_one_turn(tmp_path):
    sample = replace(sample_of(0, 4), turns=(Turn(2, True), Turn(2, True)))
    with pytest.raises(InvalidTargets, match="it has 2 turns, but format version 1 stores one answer per sample"):
        write_cache(tmp_path / "cache", [sample], spec=spec_of_kind("v1"))


def tail_sample(values):
    sample = sample_of_kind("tail", 0, 4)
    targets = replace(sample.targets, tail_coefficients=values, soft=np.ones(4, np.bool_))
    return replace(sample, targets=targets)


@pytest.mark.parametrize(("value", "dtype"), [(127.0, "int8"), (-127.0, "int8"), (128.0, "float16"), (0.5, "float16")])
def test_coefficients_are_bytes_where_these_hold_them(tmp_path, value, dtype):
    sample = tail_sample(np.full((4, 3), value, np.float32))
    write_cache(tmp_path / "cache", [sample], spec=spec_of_kind("tail"))
    cache = open_cache(tmp_path / "cache")
    assert next(cache.manifests()).arrays["tail_coefficient"][0] == dtype
    assert_stored(sample, cache[sample.key])


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_impossible_coefficients(tmp_path, value):
    with pytest.raises(InvalidTargets, match="tail_coefficients: a value is not finite, or larger than float16 holds"):
        write_cache(tmp_path / "cache", [tail_sample(np.full((4, 3), value, np.float32))], spec=spec_of_kind("tail"))


def test_a_tail_without_coefficients_is_refused(tmp_path):
    with pytest.raises(InvalidTargets, match="expected ShapedTargets, got Targets"):
        write_cache(tmp_path / "cache", [sample_of(0)], spec=spec_of_kind("tail"))
