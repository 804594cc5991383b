"""Kind exact: bits that come back, states read by part, turns, a head that is read when it is asked for."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import (
    assert_holds,
    assert_stored,
    bits_of,
    head_of,
    key_of,
    sample_of,
    sample_of_kind,
    spec_of_kind,
    write_cache,
)

from storage.errors import CorruptIndex, CorruptObject, InvalidSpec, InvalidTargets, ObjectMissing, WrongTargets
from storage.exact import open_exact_cache
from storage.format.head_table import CHUNK_BYTES, exact_sizes
from storage.format.v2.layout import STATE_CHUNK
from storage.format.v2.states import join_states, not_finite, split_states
from storage.keys import draw_key
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.store.local import LocalStore
from storage.targets import ExactSample, ExactTargets, Turn
from storage.writer import create_cache

SPEC = spec_of_kind("exact")


def spec_with(width, dtype, bias=True):
    return spec_of_kind("exact", hidden_size=width, state_dtype=dtype, head={"rows": 40, "dtype": dtype, "bias": bias})


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 40),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    lengths=st.lists(st.integers(0, 300), max_size=6),
    unit_positions=st.integers(1, 700),
    bias=st.booleans(),
)
def test_any_shape_of_cache(width, dtype, lengths, unit_positions, bias):
    spec = spec_with(width, dtype, bias)
    samples = [sample_of_kind("exact", number, length, spec=spec) for number, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as directory:
        location = Path(directory, "cache")
        write_cache(location, samples, unit_positions=unit_positions, spec=spec)
        for cache in (open_exact_cache(location, memory_budget=0), open_exact_cache(location, scratch=location / "s")):
            assert_holds(cache, samples)
            assert_holds(cache, samples)
        assert cache.head().tokens()[36] == (b"36", 1)
        assert verify_cache(location).ok()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_every_bit_pattern_comes_back(dtype):
    states = np.arange(2**16, dtype=np.uint16).reshape(256, 256).astype(dtype) * dtype(
        1 if dtype == np.uint16 else 65521
    )
    high, low = split_states(states)
    np.testing.assert_array_equal(join_states(high, low, np.dtype(dtype)), states)


def test_numbers_that_are_not_finite():
    every = np.arange(2**16, dtype=np.uint16)[:, None]
    half = every.view(np.float16)[:, 0]
    np.testing.assert_array_equal(not_finite(split_states(every)[0], "float16"), ~np.isfinite(half))
    brain = (every.astype(np.uint32) << 16).view(np.float32)[:, 0]
    np.testing.assert_array_equal(not_finite(split_states(every)[0], "bfloat16"), ~np.isfinite(brain))
    np.testing.assert_array_equal(
        not_finite(split_states(every.astype(np.uint32) << 16)[0], "float32"), ~np.isfinite(brain)
    )


def _paths_read(monkeypatch):
    read = []
    original = LocalStore.read

    def recorded(self, path, *, limit):
        read.append(path)
        return original(self, path, limit=limit)

    monkeypatch.setattr(LocalStore, "read", recorded)
    return read


def test_nothing_is_read_before_it_is_needed(tmp_path, monkeypatch):
    samples = [sample_of_kind("exact", number, 200) for number in range(12)]
    write_cache(tmp_path / "cache", samples, unit_positions=1000, spec=SPEC)
    open_exact_cache(tmp_path / "cache")
    read = _paths_read(monkeypatch)
    cache = open_exact_cache(tmp_path / "cache")
    for sample in samples:
        rows = cache.rows(sample.key)
        np.testing.assert_array_equal(rows.target_ids, sample.targets.target_ids)
        assert (rows.hard, rows.turns) == (sample.hard, sample.turns)
    assert not [path for path in read if path.startswith("head") or "/state_" in path]
    read.clear()
    assert_stored(samples[1], cache[samples[1].key])  # positions 200 to 399: chunks 3 to 6 of its unit
    assert sorted(path.split("/", 2)[2] for path in read) == [
        f"{name}/c.{chunk}.0" for name in ("state_high", "state_low") for chunk in range(3, 7)
    ]
    read.clear()
    cache.head()
    assert [path for path in read if path.startswith("head")] == ["head/head.json"]


def test_a_damaged_chunk_harms_no_other(tmp_path):
    samples = [sample_of_kind("exact", number, STATE_CHUNK) for number in range(3)]
    write_cache(tmp_path / "cache", samples, unit_positions=1000, spec=SPEC)
    (file,) = (tmp_path / "cache").glob("units/0*/state_high/c.1.0")
    file.write_bytes(file.read_bytes()[:-1])
    cache = open_exact_cache(tmp_path / "cache")
    assert_stored(samples[0], cache[key_of(0)])
    assert_stored(samples[2], cache[key_of(2)])
    assert cache.rows(key_of(1)).hard is False
    with pytest.raises(CorruptObject, match=r"state_high/c\.1\.0") as caught:
        cache[key_of(1)]
    assert caught.value.array == "state_high"


def test_memory_stays_within_the_budget(tmp_path):
    samples = [sample_of_kind("exact", number, 150) for number in range(8)]
    write_cache(tmp_path / "cache", samples, unit_positions=400, spec=SPEC)
    for budget in (0, 20_000, 10**9):
        cache = open_exact_cache(tmp_path / "cache", memory_budget=budget)
        for _ in range(2):
            assert_holds(cache, samples)
            assert sum(size for _, size in cache._held.parts.values()) == cache._held.bytes <= budget


def test_scratch_decodes_each_chunk_once_and_is_checked(tmp_path, monkeypatch):
    samples = [sample_of_kind("exact", number, 150) for number in range(4)]
    write_cache(tmp_path / "cache", samples, unit_positions=1000, spec=SPEC)
    assert_holds(open_exact_cache(tmp_path / "cache", scratch=tmp_path / "scratch"), samples)
    monkeypatch.setattr("storage.exact.load_states", None)
    again = open_exact_cache(tmp_path / "cache", scratch=tmp_path / "scratch", memory_budget=0)
    assert_holds(again, samples)
    for file in (tmp_path / "scratch").glob("*.states"):
        file.write_bytes(b"\1" + file.read_bytes()[1:] if file.read_bytes()[0] != 1 else b"\2" + file.read_bytes()[1:])
    with pytest.raises(CorruptIndex, match="crc32c does not match; delete it, and it will be made again"):
        again[key_of(0)]


def _states_of(arguments):
    cache, key = arguments
    return cache[key].targets.states


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(tmp_path, method):
    samples = [sample_of_kind("exact", number) for number in range(4)]
    write_cache(tmp_path / "cache", samples, spec=SPEC)
    cache = open_exact_cache(tmp_path / "cache")
    assert pickle.loads(pickle.dumps(cache)).digest == cache.digest
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(_states_of, [(cache, sample.key) for sample in samples])
    for sample, states in zip(samples, found, strict=True):
        np.testing.assert_array_equal(states, sample.targets.states)


def test_the_other_kind_is_refused_by_name(tmp_path):
    write_cache(tmp_path / "exact", [sample_of_kind("exact", 0)], spec=SPEC)
    write_cache(tmp_path / "top_k", [sample_of(0)])
    with pytest.raises(
        WrongTargets, match=r"exact holds exact targets \(exact, hidden_size = 12, bfloat16\), not top_k"
    ):
        open_cache(tmp_path / "exact")
    with pytest.raises(WrongTargets, match=r"top_k holds top_k targets \(top_k = 8\), not exact"):
        open_exact_cache(tmp_path / "top_k")
    with pytest.raises(WrongTargets, match="such a cache has no head"):
        open_cache(tmp_path / "top_k").head()
    writer = create_cache(tmp_path / "exact", SPEC)
    writer.write_head(head_of(SPEC))
    writer.plan([PlannedSample(key_of(9), 10)])
    (unit,) = writer.pending()
    with (
        pytest.raises(InvalidTargets, match="this cache holds exact targets, got SampleTargets"),
        writer.unit(unit) as out,
    ):
        out.append(sample_of(9))


def exact_sample(positions=4, turns=(), hard=True, **changes):
    generator = np.random.default_rng(0)
    arrays = {
        "target_ids": np.arange(positions, dtype=np.uint32),
        "states": bits_of(generator, "bfloat16", (positions, 12)),
        **changes,
    }
    return ExactSample(key=key_of(0), hard=hard, targets=ExactTargets(**arrays), turns=turns)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (exact_sample(target_ids=np.arange(4, dtype=np.int64)), "target_ids must be uint32 of shape"),
        (exact_sample(target_ids=np.array([0, 1, 40, 2], np.uint32)), "not a row of the head .position 2 of 4"),
        (
            exact_sample(states=np.zeros((4, 11), np.uint16)),
            r"states must be uint16 of shape \(4, 12\), got uint16 \(4, 11\)",
        ),
        (exact_sample(states=np.zeros((3, 12), np.uint16)), "states must be uint16"),
        (exact_sample(states=np.zeros((4, 12), np.float32)), "states must be uint16 .*, got float32"),
        (exact_sample(states=[1]), "got list"),
        (exact_sample(states=np.full((4, 12), 0x7F80, np.uint16)), "a number is not finite .position 0"),
        (exact_sample(states=np.full((4, 12), 0xFFC0, np.uint16)), "a number is not finite"),
        (exact_sample(turns=(Turn(2, True), Turn(1, True))), "its turns have .2, 1. positions, its targets 4"),
        (exact_sample(turns=(Turn(4, True), Turn(0, True))), "needs at least one"),
        (exact_sample(turns=(Turn(2, True), Turn(2, False))), "`hard` is True, its turns say otherwise"),
    ],
)
def test_impossible_samples(tmp_path, sample, message):
    writer = create_cache(tmp_path / "cache", SPEC)
    writer.write_head(head_of(SPEC))
    writer.plan([PlannedSample(sample.key, 4)])
    (unit,) = writer.pending()
    with pytest.raises(InvalidTargets, match=message), writer.unit(unit) as out:
        out.append(sample)
    assert len(writer.pending()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "some"}, "spec.targets: expected 'exact', or no such field"),
        ({"targets": None}, "spec.targets"),
        ({"turns": "last"}, "spec.turns: expected 'all', or no such field"),
        ({"hidden_size": 0}, "spec.hidden_size: expected a whole number from 1 to 65,536, got 0"),
        ({"hidden_size": 2**16 + 1}, "spec.hidden_size"),
        ({"state_dtype": "int8"}, "spec.state_dtype: expected one of bfloat16, float16, float32, got 'int8'"),
        ({"state_dtype": ["bfloat16"]}, "spec.state_dtype"),
        ({"head": None}, "spec.head: expected rows, dtype and bias"),
        ({"head": {"rows": 2**24 + 1, "dtype": "float16", "bias": False}}, "spec.head.rows"),
        ({"head": {"rows": 4, "dtype": "float64", "bias": False}}, "spec.head.dtype"),
        ({"head": {"rows": 4, "dtype": "float16", "bias": 0}}, "spec.head"),
        ({"head": {"rows": 4, "dtype": "float16", "bias": False, "more": 1}}, "spec.head"),
    ],
)
def test_impossible_spec(tmp_path, change, message):
    with pytest.raises(InvalidSpec, match=message):
        create_cache(tmp_path / "cache", {**SPEC, **change})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((40, 11), np.uint16)}, r"weight must be uint16 of shape \(40, 12\)"),
        ({"weight": np.zeros((40, 12), np.uint32)}, "weight must be uint16"),
        ({"token_bytes": np.zeros(3, np.uint8)}, "sum of token_length"),
        ({"more": np.zeros(3, np.uint8)}, "expected the arrays weight, bias, token_length"),
    ],
)
def test_impossible_heads(tmp_path, change, message):
    content = head_of(SPEC)
    content = type(content)(arrays={**content.arrays, **change})
    with pytest.raises(InvalidTargets, match=message):
        create_cache(tmp_path / "cache", SPEC).write_head(content)
    assert not (tmp_path / "cache" / "head").exists()


@pytest.mark.parametrize(
    "scalars", [{"scale": 0}, {"scale": float("nan")}, {"softcap": -1.0}, {"softcap": float("inf")}]
)
def test_impossible_scalars(tmp_path, scalars):
    content = type(head_of(SPEC))(arrays=head_of(SPEC).arrays, **scalars)
    with pytest.raises(InvalidTargets, match="expected a positive number"):
        create_cache(tmp_path / "cache", SPEC).write_head(content)


def test_a_head_of_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.format.head_table.CHUNK_BYTES", 24 * 9)  # nine rows
    writer = create_cache(tmp_path / "cache", SPEC)
    content = head_of(SPEC)
    digests = {writer.write_head(content, first=worker) for worker in range(7)}
    assert len(digests) == 1
    chunks = sorted((tmp_path / "cache" / "head" / "arrays" / "weight").glob("c.*"))
    assert len(chunks) == 5
    cache = open_exact_cache(tmp_path / "cache")
    np.testing.assert_array_equal(cache.head().array("weight"), content.arrays["weight"])
    assert [(start, len(rows)) for start, rows in cache.head().chunks("weight")] == [(8 * n, 8) for n in range(5)]


@pytest.mark.parametrize(
    ("rows", "width", "dtype"), [(152_064, 3_584, "bfloat16"), (32_000, 4_096, "float32"), (5, 2**16, "float32")]
)
def test_chunks_of_real_heads_keep_to_64_mib_and_waste_little(rows, width, dtype):
    sizes = exact_sizes(rows, width, dtype, False)
    shape = sizes.shape("weight", 0)
    chunks = len(sizes.chunks("weight", shape))
    assert sizes.chunk_bytes("weight", shape) - 4 <= CHUNK_BYTES
    assert chunks * (sizes.chunk_bytes("weight", shape) - 4) < sizes.nbytes() * 1.001 + chunks * width * 4


def test_a_head_that_is_not_there(tmp_path):
    create_cache(tmp_path / "cache", SPEC)
    with pytest.raises(
        ObjectMissing, match=r"head/head\.json not found: the cache has no head yet; run fs-teacher dump again"
    ):
        open_exact_cache(tmp_path / "cache").head()
    assert verify_cache(tmp_path / "cache").ok()


def test_keys_of_draws():
    key = key_of(0)
    assert draw_key(key, 0) == key
    others = [draw_key(key, draw) for draw in range(1, 4)]
    assert len({key, *others}) == 4
    import hashlib

    assert others[0] == hashlib.sha256(bytes.fromhex(key) + b"\1\0\0\0").hexdigest()
    for draw in (-1, 2**32):
        with pytest.raises(InvalidTargets, match="expected a draw from 0"):
            draw_key(key, draw)
