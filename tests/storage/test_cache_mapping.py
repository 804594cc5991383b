"""A cache as a mapping from keys to targets."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from storage_cases import assert_stored, key_of, sample_of, spec_of, write_cache, write_unit

from storage.errors import CorruptObject, SkippedSample, UnknownUnit
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.writer import create_cache


@pytest.fixture
def location(tmp_path):
    """Samples 0 to 3 stored, 4 skipped."""
    writer = create_cache(tmp_path / "cache", spec_of())
    writer.plan([PlannedSample(key_of(number), 10) for number in range(5)], unit_positions=20)
    for unit in writer.pending():
        write_unit(writer, unit, {key_of(number): sample_of(number) for number in range(4)})
    return tmp_path / "cache"


def test_keys_values_and_items(location):
    cache = open_cache(location)
    assert isinstance(cache, Mapping)
    stored = sorted(key_of(number) for number in range(4))
    assert list(cache) == list(cache.keys()) == stored
    assert len(cache) == len(cache.keys()) == 4
    assert [sample.key for sample in cache.values()] == stored
    for number in range(4):
        assert_stored(sample_of(number), dict(cache.items())[key_of(number)])
    assert key_of(4) not in cache
    assert 3 not in cache
    assert cache.keys() - {key_of(0)} == {key_of(number) for number in (1, 2, 3)}


def test_get_gives_the_default_for_what_has_no_targets(location):
    cache = open_cache(location)
    assert_stored(sample_of(1), cache.get(key_of(1)))
    assert cache.get(key_of(4)) is None  # skipped
    assert cache.get(key_of(9), "nothing") == "nothing"
    assert cache.get(key_of(1).upper()) is None
    with pytest.raises(SkippedSample):
        cache[key_of(4)]


def test_get_hides_no_damage(location):
    cache = open_cache(location)
    for file in location.glob("units/0*/gap/c.0.0"):
        file.write_bytes(b"short")
    with pytest.raises(CorruptObject):
        cache.get(key_of(1))
    for file in location.glob("manifests/0*.json"):
        file.unlink()
    with pytest.raises(UnknownUnit):  # a KeyError, too
        cache.get(key_of(2))


def test_two_caches_are_equal_only_if_they_are_one(location):
    one, two = open_cache(location), open_cache(location)
    assert one == one
    assert one != two
    assert one != {}
    assert len({one, two}) == 2
    assert one.digest == two.digest


def test_what_a_cache_says_of_itself(location):
    cache = open_cache(location)
    assert repr(cache) == f"<Cache {location}: 4 samples, top_k = 8, digest {cache.digest[:12]}>"


def test_an_empty_cache_is_a_mapping(tmp_path):
    write_cache(tmp_path / "cache", [])
    cache = open_cache(tmp_path / "cache")
    assert dict(cache.items()) == {}
    assert not cache
