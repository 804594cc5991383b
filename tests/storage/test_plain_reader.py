"""A reader written from docs/FORMAT.md alone, with nothing but zarr and numpy, and the golden stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from storage_cases import (
    assert_stored,
    head_of,
    key_of,
    open_kind,
    sample_of,
    sample_of_kind,
    spec_of,
    spec_of_kind,
    write_cache,
    write_unit,
)

from storage.format import VERSIONS
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.writer import create_cache

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").glob("v*") if path.is_dir())


def read_plainly(location):
    """Sample key -> (turns, ids, logprobs, tail, target_ids, target_logprobs, soft), with a tail rank the coefficients.

    Of kind exact: (turns, target_ids, states).
    """
    root = zarr.open_group(location, mode="r")
    spec = root.attrs["spec"]
    top_k = spec.get("top_k")
    samples = {}
    for manifest in sorted(Path(location, "manifests").glob("[0-9]*.json")):
        facts = json.loads(manifest.read_bytes())
        unit = root[f"units/{facts['unit']}.{facts['attempt']}"]
        a = {name: array[...] for name, array in unit.arrays()}
        if spec.get("targets") == "exact":
            samples |= rows_of(a, [a["target"], join_bytes(a["state_high"], a["state_low"])])
            continue
        soft = a["target"] < top_k

        gap = (
            np.stack([a["gap"] >> 4, a["gap"] & 15], axis=1)
            .reshape(2 * len(a["gap"]), soft.sum())[:top_k]
            .astype(np.int64)
        )
        gap[gap == 15] = a["gap_escape"]
        logprobs = -np.cumsum(gap, axis=0) * unit.attrs["value_step"]

        words = np.cumsum(a["id_dictionary"], dtype=np.uint32)
        place = a["id_token"].astype(np.int64)
        direct, base = unit.attrs["direct"], 256 ** a["id_extra"].dtype.itemsize
        far = place >= direct
        place[far] = direct + (place[far] - direct) * base + a["id_extra"]
        ids = words[place] if place.size else place

        code = np.cumsum(a["tail"], axis=0, dtype=np.uint16)
        tail = np.where(code == 65535, -np.inf, unit.attrs["tail_origin"] - code * unit.attrs["tail_step"])

        def spread(values, soft=soft):
            rows = np.zeros((len(soft), *values.shape[:-1]))
            rows[soft] = values.T
            return rows

        target_ids = a["target"] - np.uint32(top_k)
        target_ids[soft] = ids.T[np.arange(soft.sum()), a["target"][soft]]
        fields = [spread(ids), spread(logprobs), spread(tail), target_ids, spread(a["target_logprob"]), soft]
        if "tail_coefficient" in a:
            fields.append(spread(a["tail_coefficient"]))
        samples |= rows_of(a, fields)
    return samples


def rows_of(a, fields):
    """Each sample's turns and its part of the fields."""
    samples, start, turn = {}, 0, 0
    for key, (length, second) in zip(a["keys"], a["samples"], strict=True):
        turns = a["turns"][turn : turn + second].tolist() if "turns" in a else [[length, second]]
        samples[key.tobytes().hex()] = (turns, *(rows[start : start + length] for rows in fields))
        start, turn = start + length, turn + second
    return samples


def join_bytes(high, low):
    """The bits of the states, [P, D]."""
    positions, width = high.shape
    planes = np.concatenate(
        [high[:, None], low.reshape(positions, low.shape[1] // width, width)], axis=1
    )  # the highest byte first
    size = planes.shape[1]
    bits = sum(planes[:, n].astype(np.uint64) << np.uint64(8 * (size - 1 - n)) for n in range(size))
    bits = (bits >> np.uint64(1)) | ((bits & np.uint64(1)) << np.uint64(8 * size - 1))
    return bits.astype(f"u{size}")


def read_head_plainly(location):
    """Array name -> array, and the tokens of kind exact, of the head of a cache."""
    facts = json.loads(Path(location, "head/head.json").read_bytes())
    arrays = {name: array[...] for name, array in zarr.open_group(Path(location, facts["prefix"]), mode="r").arrays()}
    if "token_bytes" in arrays:
        length, content, start, tokens = arrays["token_length"], arrays["token_bytes"].tobytes(), 0, {}
        for index in np.flatnonzero(length != 2**32 - 1):
            tokens[int(index)] = (content[start : start + length[index]], int(arrays["token_kind"][index]))
            start += length[index]
        arrays["tokens"] = tokens
    return arrays


def _assert_equal(location):
    cache = open_kind(location)
    plain = read_plainly(location)
    assert set(plain) == set(cache.keys())
    if (Path(location) / "head").is_dir():
        for name, array in read_head_plainly(location).items():
            if name == "tokens":
                assert cache.head().tokens() == array
            else:
                np.testing.assert_array_equal(cache.head().array(name), array)
    for key, (turns, *fields) in plain.items():
        found = cache[key]
        assert found.hard == all(hard for _, hard in turns)
        assert [[turn.positions, turn.hard] for turn in found.all_turns()] == turns
        if cache.kind == "exact":
            np.testing.assert_array_equal(found.targets.target_ids, fields[0])
            np.testing.assert_array_equal(found.targets.states, fields[1])
            continue
        ids, logprobs, tail, target_ids, target_logprobs, soft, *coefficients = fields
        if coefficients:
            np.testing.assert_array_equal(found.targets.tail_coefficients, coefficients[0])
        np.testing.assert_array_equal(found.targets.ids, ids)
        np.testing.assert_array_equal(found.targets.logprobs, logprobs.astype(np.float32))
        np.testing.assert_array_equal(found.targets.tail, tail.astype(np.float32))
        np.testing.assert_array_equal(found.targets.target_ids, target_ids)
        np.testing.assert_array_equal(found.targets.target_logprobs, target_logprobs.astype(np.float32))
        np.testing.assert_array_equal(found.targets.soft, soft)


@pytest.mark.parametrize("soft_share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("vocabulary", "top_k"), [(500, 8), (3000, 7), (12, 12), (5, 1)])
def test_the_plain_reader_agrees(tmp_path, vocabulary, top_k, soft_share):
    spec = spec_of(vocabulary, top_k)
    samples = [sample_of(number, number * 3, spec=spec, soft_share=soft_share) for number in range(6)]
    write_cache(tmp_path / "cache", samples, spec=spec)
    _assert_equal(tmp_path / "cache")


def test_zarr_lists_a_cache_without_a_warning(tmp_path):
    write_cache(tmp_path / "cache", [sample_of(0)])
    root = zarr.open_group(tmp_path / "cache", mode="r")
    assert set(root.keys()) == {"plans", "manifests", "units", "index"}
    ((name, unit),) = root["units"].members()
    assert name.startswith("000000-000000.")
    assert len(dict(unit.arrays())) == 11


@pytest.mark.parametrize("positions", [0, 3, 257])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_plain_reader_agrees_on_states(tmp_path, dtype, positions):
    spec = spec_of_kind("exact", state_dtype=dtype)
    samples = [sample_of_kind("exact", number, number * positions, spec=spec) for number in range(4)]
    write_cache(tmp_path / "cache", samples, spec=spec, unit_positions=10_000)
    _assert_equal(tmp_path / "cache")


@pytest.mark.parametrize("kind", ["v2", "tail"])
def test_the_plain_reader_agrees_on_version_2(tmp_path, kind):
    samples = [sample_of_kind(kind, number, number * 3) for number in range(6)]
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind(kind))
    _assert_equal(tmp_path / "cache")


def golden_samples():
    """What the golden store of version 1 was made of. It is never made again: it is what old caches look like."""
    spec = spec_of(300, 5)
    return spec, [sample_of(number, 4 + number, spec=spec, soft_share=0.8, hard=number != 2) for number in range(5)]


def golden_samples_2(kind):
    """What a golden store of version 2 was made of, by `write_golden`. It is never made again."""
    spec = spec_of_kind(kind)
    return spec, [sample_of_kind(kind, number, 4 + number) for number in range(5)]


MADE_OF = {
    "v1": golden_samples,
    "v2-top_k": lambda: golden_samples_2("v2"),
    "v2-tail": lambda: golden_samples_2("tail"),
    "v2-exact": lambda: golden_samples_2("exact"),
}


def write_golden(name, directory):
    """Make a golden store and what is expected of it, once, when its version is new."""
    location = Path(directory, name)
    spec, samples = MADE_OF[name]()
    writer = create_cache(location, spec)
    if writer.version.head is not None:
        writer.write_head(head_of(spec))
    table = {sample.key: sample for sample in samples}
    writer.plan([PlannedSample(key, 10) for key in (*table, key_of(50), key_of(51))], unit_positions=40)
    for unit in writer.pending():
        write_unit(writer, unit, {key: sample for key, sample in table.items() if key != samples[1].key})
    writer.plan([PlannedSample(key, 10) for key in (samples[1].key, key_of(50))], retry_skipped=True)
    for unit in writer.pending():
        write_unit(writer, unit, table)
    cache = open_kind(location)
    targets = {key: {name: array.tolist() for name, array in vars(cache[key].targets).items()} for key in cache}
    facts = {"digest": cache.digest, "statistics": cache.statistics(), "skipped": cache.skipped(), "samples": targets}
    Path(directory, f"{name}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("location", GOLDEN, ids=lambda path: path.name)
def test_golden_stores_are_read(location, monkeypatch):
    monkeypatch.setattr("storage.reader.save_index", lambda *_: False)  # the golden store stays as it is
    _, samples = MADE_OF[location.name]()
    cache = open_kind(location)
    assert cache.spec["format_version"] == int(location.name.removeprefix("v").split("-")[0])
    assert set(cache.keys()) == {sample.key for sample in samples}
    for sample in samples:
        assert_stored(sample, cache[sample.key])
    expected = json.loads((location.parent / f"{location.name}.json").read_text())
    assert cache.digest == expected["digest"]
    assert cache.statistics() == expected["statistics"]
    skipped = {key_of(50): "no answer position"}
    assert cache.skipped() == expected.get("skipped", skipped)
    assert cache.skipped().items() >= skipped.items()
    for key, values in expected["samples"].items():
        for name, value in values.items():
            np.testing.assert_array_equal(getattr(cache[key].targets, name), np.array(value))
    assert verify_cache(location).ok()
    _assert_equal(location)


def test_there_is_a_golden_store_of_every_version_and_kind():
    assert {path.name for path in GOLDEN} == set(MADE_OF)
    assert {int(name.removeprefix("v").split("-")[0]) for name in MADE_OF} == set(VERSIONS)
