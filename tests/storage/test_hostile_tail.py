"""A cache whose tail has a shape, made to harm: the coefficients of its units, all digests right (its head: `test_hostile.py`)."""

from __future__ import annotations

import hashlib
import json
import re
import resource
from dataclasses import replace

import numcodecs
import numpy as np
import pytest
from storage_cases import head_of, key_of, open_kind, sample_of_kind, spec_of_kind, write_cache
from test_hostile import _forge, _forge_head, _replace, _with_crc

from storage.errors import CorruptObject, InvalidTargets
from storage.format.chunks import encode_chunk, encode_plain
from storage.maintenance.verify import verify_cache
from storage.writer import create_cache


@pytest.fixture
def location(tmp_path):
    write_cache(tmp_path / "cache", [sample_of_kind("tail", number) for number in range(4)], spec=spec_of_kind("tail"))
    return tmp_path / "cache"


def coefficients(location):
    """Dtype and shape of the array in the only unit."""
    (file,) = location.glob("manifests/0*.json")
    dtype, shape = json.loads(file.read_bytes())["arrays"]["tail_coefficient"]
    return np.dtype(dtype), shape


def refused(location, problem):
    with pytest.raises(CorruptObject, match=problem):
        open_kind(location)[key_of(0)]
    found = verify_cache(location).problems
    assert len(found) == 1
    assert re.search(problem, found[0].message), found[0].message


def test_a_bomb_among_the_coefficients(location):
    bomb = bytes(numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE).encode(np.zeros(2**28, np.uint8)))
    _replace(location, "tail_coefficient/c.0.0", _with_crc(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(location, "claims 268,435,456 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17


@pytest.mark.parametrize("shape", [[3, 10**13], [10**13, 3], [4, 30], [3, -1], [3], [3, 1]])
def test_a_forged_shape(location, shape):
    _forge(location, lambda manifest: manifest["arrays"]["tail_coefficient"].__setitem__(1, shape))
    with pytest.raises(CorruptObject, match="array tail_coefficient has the shape"):
        open_kind(location)[key_of(0)]


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "object"])
def test_a_forged_dtype(location, dtype):
    _forge(location, lambda manifest: manifest["arrays"]["tail_coefficient"].__setitem__(0, dtype))
    with pytest.raises(CorruptObject, match="tail_coefficient"):
        open_kind(location)[key_of(0)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_coefficient_that_is_not_finite(tmp_path, value):
    """Of a unit in float16, in which there is such a thing."""
    samples = [sample_of_kind("tail", number) for number in range(2)]
    samples[0].targets.tail_coefficients[:] *= 3
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind("tail"))
    dtype, shape = coefficients(tmp_path / "cache")
    assert dtype == np.float16
    _replace(tmp_path / "cache", "tail_coefficient/c.0.0", encode_chunk(np.full(shape, value, dtype)))
    refused(tmp_path / "cache", "tail_coefficient.* a value is not finite")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_writer_takes_no_such_coefficient(tmp_path, value):
    sample = sample_of_kind("tail", 0)
    sample.targets.tail_coefficients[np.flatnonzero(sample.targets.soft)[0], 1] = value
    with pytest.raises(ValueError, match="tail_coefficients"):
        write_cache(tmp_path / "cache", [sample], spec=spec_of_kind("tail"))


def test_coefficients_that_are_not_there(location):
    _forge(location, lambda manifest: manifest["arrays"].pop("tail_coefficient"))
    with pytest.raises(CorruptObject, match="manifests/000000-000000"):
        open_kind(location)[key_of(0)]


def test_units_of_two_bases(tmp_path):
    """Coordinates mean nothing without the basis that they were computed with."""
    from storage.canonical import seal, unseal

    samples = [sample_of_kind("tail", number) for number in range(8)]
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind("tail"))
    first, _ = sorted((tmp_path / "cache").glob("manifests/0*.json"))
    document = unseal(first.read_bytes(), "manifest")
    first.write_bytes(seal({**document, "head": "0" * 64}))
    with pytest.raises(CorruptObject, match="made with the head"):
        open_kind(tmp_path / "cache")
    assert any("made with the head 0000" in problem.message for problem in verify_cache(tmp_path / "cache").problems)


@pytest.mark.parametrize(
    ("array", "value", "problem"),
    [
        ("image", np.nan, "a number is not finite"),
        ("image", np.inf, "a number is not finite"),
        ("mean", -np.inf, "a number is not finite"),
        ("center", np.nan, "a number is not finite"),
        ("scale", np.nan, "a number is not finite"),
        ("scale", 0.0, "a number is not positive"),
        ("scale", -0.25, "a number is not positive"),
    ],
)
def test_numbers_of_the_head_that_no_logits_come_from(location, tmp_path, array, value, problem):
    """Of a forged head whose digests are right; and a writer takes none."""
    spec = spec_of_kind("tail")
    (chunk,) = location.glob(f"head/[0-9]*/{array}/c.*")
    content = head_of(spec)
    forged = content.arrays[array].copy()
    forged.flat[0] = value
    data = encode_plain(forged)
    chunk.write_bytes(data)
    entry = [len(data), hashlib.sha256(data).hexdigest()]
    _forge_head(location, lambda head: head["objects"].update({f"{array}/{chunk.name}": entry}))
    with pytest.raises(CorruptObject, match=f"{array}/c.*: {problem}"):
        open_kind(location).head().array(array)
    assert any(problem in item.message for item in verify_cache(location).problems)
    writer = create_cache(tmp_path / "new", spec)
    with pytest.raises(InvalidTargets, match=f"head: {array}: {problem}"):
        writer.write_head(replace(content, arrays={**content.arrays, array: forged}))
