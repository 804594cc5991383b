"""A reader written from docs/FORMAT.md alone, with nothing but zarr and numpy, and the golden stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from storage_cases import assert_stored, key_of, sample_of, spec_of, write_cache

from storage.format import VERSIONS
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").glob("v*") if path.is_dir())


def read_plainly(location):
    """Sample key -> (hard, ids, logprobs, tail, target_ids, target_logprobs, soft)."""
    root = zarr.open_group(location, mode="r")
    spec = root.attrs["spec"]
    top_k = spec["top_k"]
    samples = {}
    for manifest in sorted(Path(location, "manifests").glob("[0-9]*.json")):
        facts = json.loads(manifest.read_bytes())
        unit = root[f"units/{facts['unit']}.{facts['attempt']}"]
        a = {name: array[...] for name, array in unit.arrays()}
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
        start = 0
        for key, (length, hard) in zip(a["keys"], a["samples"], strict=True):
            samples[key.tobytes().hex()] = (bool(hard), *(rows[start : start + length] for rows in fields))
            start += length
    return samples


def _assert_equal(location):
    cache = open_cache(location)
    plain = read_plainly(location)
    assert set(plain) == set(cache.keys())
    for key, (hard, ids, logprobs, tail, target_ids, target_logprobs, soft) in plain.items():
        found = cache[key]
        assert found.hard == hard
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
    assert len(dict(unit.arrays())) == 10


def golden_samples():
    """What the golden store of version 1 was made of. It is never made again: it is what old caches look like."""
    spec = spec_of(300, 5)
    return spec, [sample_of(number, 4 + number, spec=spec, soft_share=0.8, hard=number != 2) for number in range(5)]


MADE_OF = {"v1": golden_samples}


@pytest.mark.parametrize("location", GOLDEN, ids=lambda path: path.name)
def test_golden_stores_are_read(location, monkeypatch):
    monkeypatch.setattr("storage.reader.save_index", lambda *_: False)  # the golden store stays as it is
    _, samples = MADE_OF[location.name]()
    cache = open_cache(location)
    assert cache.spec["format_version"] == int(location.name.removeprefix("v"))
    assert set(cache.keys()) == {sample.key for sample in samples}
    for sample in samples:
        assert_stored(sample, cache[sample.key])
    expected = json.loads((location.parent / f"{location.name}.json").read_text())
    assert cache.digest == expected["digest"]
    assert cache.statistics() == expected["statistics"]
    assert cache.skipped() == {key_of(50): "no answer position"}
    for key, values in expected["samples"].items():
        for name, value in values.items():
            np.testing.assert_array_equal(getattr(cache[key].targets, name), np.array(value))
    assert verify_cache(location).ok()
    _assert_equal(location)


def test_there_is_a_golden_store_of_every_version():
    assert [path.name for path in GOLDEN] == [f"v{number}" for number in sorted(VERSIONS)]
