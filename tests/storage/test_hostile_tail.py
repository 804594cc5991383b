"""A cache whose tail has a shape, made to harm: the coefficients of its units, all digests right (its head: `test_hostile.py`)."""

from __future__ import annotations

import json
import re
import resource

import numcodecs
import numpy as np
import pytest
from storage_cases import key_of, open_kind, sample_of_kind, spec_of_kind, write_cache
from test_hostile import _forge, _replace, _with_crc

from storage.errors import CorruptObject
from storage.format.chunks import encode_chunk
from storage.maintenance.verify import verify_cache


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
