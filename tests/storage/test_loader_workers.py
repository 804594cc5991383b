"""Reading from many processes, within a budget of memory, and opening without reading everything."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time

import pytest
from storage_cases import assert_holds, assert_stored, key_of, sample_of, write_cache

from storage.errors import CorruptIndex, StoreError
from storage.format.base import DecodedUnit
from storage.index import INDEX, INDEX_NAME
from storage.reader import open_cache
from storage.store.local import LocalStore

COUNT = 24


@pytest.fixture(scope="module")
def samples():
    return {sample.key: sample for sample in (sample_of(number) for number in range(COUNT))}


@pytest.fixture
def location(tmp_path, samples):
    write_cache(tmp_path / "cache", samples.values())
    return tmp_path / "cache"


def _settle(location):
    """Let the last commit be old enough that the index can trust the directory's time."""
    past = time.time() - 60
    os.utime(location / "manifests", (past, past))
    open_cache(location)


def _read_all(cache, keys):
    return {key: cache[key] for key in keys}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("with_scratch", [False, True])
def test_worker_processes(tmp_path, location, samples, method, with_scratch):
    cache = open_cache(location, scratch=tmp_path / "scratch" if with_scratch else None)
    first = next(iter(samples))
    assert_stored(samples[first], cache[first])  # a decoded unit is in memory when the workers start
    keys = list(samples)
    with multiprocessing.get_context(method).Pool(2) as pool:
        parts = pool.starmap(_read_all, [(cache, keys[:16]), (cache, keys[8:]), (cache, keys[::-1])])
    for part in parts:
        for key, found in part.items():
            assert_stored(samples[key], found)


def test_forked_worker_uses_the_parent_s_object(location, samples):
    cache = open_cache(location)
    cache[key_of(0)]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert_holds(cache, samples.values())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_pickle_opens_the_same_cache(location):
    cache = open_cache(location, memory_budget=123)
    assert pickle.loads(pickle.dumps(cache)).digest == cache.digest


@pytest.mark.parametrize("budget", [0, 10_000, 10**9])
def test_memory_stays_within_the_budget(location, samples, budget):
    cache = open_cache(location, memory_budget=budget)
    for _ in range(2):
        assert_holds(cache, samples.values())
        assert sum(size for _, size in cache._held.parts.values()) == cache._held.bytes <= budget


def test_samples_own_their_arrays(location):
    cache = open_cache(location)
    cache[key_of(0)].targets.ids[:] = 0
    assert cache[key_of(0)].targets.ids.any()


def test_scratch_decodes_each_unit_once(tmp_path, location, samples, monkeypatch):
    assert_holds(open_cache(location, scratch=tmp_path / "scratch"), samples.values())
    files = list((tmp_path / "scratch").glob("*.unit"))
    assert len(files) == COUNT / 4
    monkeypatch.setattr("storage.reader.load_unit", None)
    assert_holds(open_cache(location, scratch=tmp_path / "scratch", memory_budget=0), samples.values())


def test_a_scratch_directory_that_cannot_be_made(tmp_path, location):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"scratch directory .*file/scratch: Not a directory; choose another"):
        open_cache(location, scratch=tmp_path / "file" / "scratch")[key_of(0)]


def test_a_scratch_directory_without_room(tmp_path, location, monkeypatch):
    def write_bytes(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = open_cache(location, scratch=tmp_path / "scratch")
    monkeypatch.setattr("pathlib.Path.write_bytes", write_bytes)
    with pytest.raises(StoreError, match=r"no space left in the scratch directory .*scratch; free some, or choose"):
        cache[key_of(0)]
    monkeypatch.undo()
    assert_stored(sample_of(0), cache[key_of(0)])


def test_a_unit_in_scratch_of_a_program_with_other_fields(tmp_path, location, monkeypatch):
    cache = open_cache(location, scratch=tmp_path / "scratch")
    monkeypatch.setattr(DecodedUnit, "arrays", lambda unit: {"offsets": unit.offsets, "turns": unit.turns})
    with pytest.raises(
        CorruptIndex, match="another version of this program made it; delete it, and it will be made again"
    ):
        cache[key_of(0)]


def _paths_read(monkeypatch):
    read: list[str] = []
    original = LocalStore.read

    def recording(self, path, *, limit):
        read.append(path)
        return original(self, path, limit=limit)

    monkeypatch.setattr(LocalStore, "read", recording)
    return read


def test_opens_in_constant_work_once_indexed(location, samples, monkeypatch):
    _settle(location)
    read = _paths_read(monkeypatch)
    cache = open_cache(location)
    assert read == ["zarr.json"]
    assert len(cache) == COUNT
    assert cache.digest
    assert_holds(cache, samples.values())


def test_the_index_notices_new_and_deleted_units(location, samples):
    _settle(location)
    new = sample_of(1000)
    write_cache(location, [new])
    assert_holds(open_cache(location), [*samples.values(), new])
    _settle(location)
    os.unlink(sorted((location / "manifests").glob("0*"))[-1])
    assert_holds(open_cache(location), samples.values())


def test_a_deleted_index_is_built_again(location, samples):
    open_cache(location)
    (location / INDEX / INDEX_NAME).unlink()
    assert_holds(open_cache(location), samples.values())
    assert (location / INDEX / INDEX_NAME).exists()


def test_a_cache_that_cannot_be_written_is_indexed_in_memory(location, samples, monkeypatch):
    monkeypatch.setattr("storage.reader.save_index", lambda *_: False)
    assert_holds(open_cache(location), samples.values())


def test_an_index_of_another_cache_is_not_used(tmp_path, location, samples):
    other = [sample_of(number) for number in range(100, 104)]
    write_cache(tmp_path / "other", other)
    _settle(tmp_path / "other")
    data = (tmp_path / "other" / INDEX / INDEX_NAME).read_bytes()
    (location / INDEX / INDEX_NAME).write_bytes(data)
    assert_holds(open_cache(location), samples.values())


def test_the_room_imports_no_model_library():
    code = "import json, sys; from storage.maintenance import gc, status, verify\nprint(json.dumps(list(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    roots = {name.split(".")[0] for name in modules}
    assert not roots & {"torch", "transformers", "obstore", "zarr", "firstsight", "phase1_teacher", "phase2_student"}
