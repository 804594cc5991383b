"""Flip bits, cut, delete and swap in every kind of file: each is an error that names the place, none is silent."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from storage_cases import LONG, open_kind, sample_of_kind, spec_of_kind, write_cache

from storage.errors import CacheError, CorruptIndex, CorruptObject
from storage.head.document import read_head_document
from storage.index import INDEX, INDEX_NAME
from storage.maintenance.verify import verify_cache
from storage.store import open_store

FLIPS = 1000 if LONG else 60
TRUNCATIONS = 100 if LONG else 20
KINDS = {
    "chunks": "units/0*/*/c.*",
    "array metadata": "units/0*/*/zarr.json",
    "unit metadata": "units/0*/zarr.json",
    "root": "zarr.json",
    "group metadata": "[pmui]*/zarr.json",
    "plans": "plans/0*.json",
    "manifests": "manifests/0*.json",
    "index": f"{INDEX}/{INDEX_NAME}",
    "head chunks": "head/**/c.*",
    "head metadata": "head/**/zarr.json",
    "head document": "head/head.json",
}


@pytest.fixture(scope="module", params=["v1", "exact", "tail"])
def cache_kind(request):
    return request.param


@pytest.fixture(scope="module")
def original(tmp_path_factory, cache_kind):
    location = tmp_path_factory.mktemp("corruption") / "cache"
    samples = [sample_of_kind(cache_kind, number, 5) for number in range(4)]
    write_cache(location, samples, unit_positions=10, spec=spec_of_kind(cache_kind))
    past = 1_000_000_000
    os.utime(location / "manifests", (past, past))
    open_kind(location)
    return location


def _files(location: Path, kind: str) -> list[Path]:
    files = sorted(location.glob(KINDS[kind]))
    version = json.loads((location / "zarr.json").read_text())["attributes"]["spec"]["format_version"]
    if not files and kind.startswith("head") and version == 1:
        pytest.skip("a cache of version 1 has no head")
    assert files
    return files


@pytest.fixture
def location(original, tmp_path):
    shutil.copytree(original, tmp_path / "cache", dirs_exist_ok=True)  # copy2 keeps the time of the manifests
    return tmp_path / "cache"


def _content(location: Path) -> dict[str, list[bytes]]:
    cache = open_kind(location)
    content = {key: [array.tobytes() for array in vars(cache[key].targets).values()] for key in cache}
    if (location / "head").is_dir():
        head = cache.head()
        names = (
            ("weight", "bias", "token_bytes")
            if cache.kind == "exact"
            else ("image", "mean", "scale", "basis", "center")
        )
        content["head"] = [head.array(name).tobytes() for name in names]
        if cache.kind == "exact":
            content["head"].append(repr(head.tokens()).encode())
    return content


def _problem_paths(location: Path) -> list[str]:
    """The objects that verify names, or that the error of an unreadable root names."""
    try:
        report = verify_cache(location)
    except CacheError as error:
        return [str(error)]
    for problem in report.problems:
        assert str(location) in problem.message
        assert "\n" not in problem.message
    return [problem.object for problem in report.problems] + [f"manifests/{name}.json" for name in report.missing]


def _check_noticed(location: Path, file: Path, content: dict[str, list[bytes]]) -> None:
    """verify names the file; reading raises an error of the cache or gives what was stored."""
    relative = file.relative_to(location).as_posix()
    assert any(relative in path for path in _problem_paths(location))
    with contextlib.suppress(CacheError):
        assert _content(location) == content


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_single_bit_flips(original, location, kind):
    content = _content(original)
    files = _files(location, kind)
    generator = random.Random(kind)
    bits = [(file, bit) for file in files for bit in range(8 * file.stat().st_size)]
    for file, bit in generator.sample(bits, min(FLIPS, len(bits))):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        _put(file, bytes(damaged))
        _check_noticed(location, file, content)
        _put(file, whole)
    assert _problem_paths(location) == []


def _put(file: Path, data: bytes) -> None:
    """Change a file in place, so that the time of its directory stays."""
    with open(file, "r+b") as out:
        out.write(data)
        out.truncate()


@pytest.mark.faults
def test_truncations(original, location):
    content = _content(original)
    generator = random.Random(1)
    files = [file for pattern in KINDS.values() for file in sorted(location.glob(pattern))]
    for _ in range(TRUNCATIONS):
        file = generator.choice(files)
        whole = file.read_bytes()
        _put(file, whole[: generator.randrange(len(whole))])
        _check_noticed(location, file, content)
        _put(file, whole)
    assert _problem_paths(location) == []


def test_deletions(original, location):
    """A deleted index is built again; a deleted manifest is a unit that is not committed."""
    content = _content(original)
    for kind, pattern in KINDS.items():
        for file in sorted(location.glob(pattern)):
            whole = file.read_bytes()
            file.unlink()
            if kind == "index":
                assert _problem_paths(location) == []
                assert _content(location) == content
            elif kind == "manifests":
                assert _problem_paths(location) == [file.relative_to(location).as_posix()]
                found = _content(location)
                assert len(found) == len(content) - 2
                assert found.items() <= content.items()
            elif kind == "plans":
                assert _problem_paths(location)
                with pytest.raises(CorruptObject, match="plan"):
                    _content(location)
            else:
                _check_noticed(location, file, content)
            file.write_bytes(whole)


def test_swapped_chunks_are_noticed(original, location, cache_kind):
    content = _content(original)
    array = "state_low" if cache_kind == "exact" else "gap"
    first, second = sorted(location.glob(f"units/0*/{array}/c.0.0"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert {first.relative_to(location).as_posix(), second.relative_to(location).as_posix()} <= set(
        _problem_paths(location)
    )
    with pytest.raises(CorruptObject, match=r"sha256|bytes") as caught:
        _content(location)
    assert caught.value.array == array
    first.write_bytes(one)
    _check_noticed(location, second, content)


def test_swapped_units_are_noticed(location):
    first, second = sorted(location.glob("manifests/0*.json"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert len(_problem_paths(location)) == 2
    with pytest.raises(CorruptObject, match="belongs to another unit"):
        _content(location)


def test_an_object_that_no_manifest_lists(location):
    (unit, *_) = sorted(location.glob("units/0*"))
    (unit / "target" / "c.1").write_bytes(b"more")
    (location / "manifests" / "notes.txt").write_text("hello")
    extra = {f"units/{unit.name}/target/c.1", "manifests/notes.txt"}
    if (location / "head").is_dir():
        name = read_head_document(open_store(location), open_kind(location)._version).prefix
        (location / name / "more").write_bytes(b"more")
        extra |= {f"{name}/more", "head/more"}
        (location / "head" / "more").write_bytes(b"more")
    assert set(_problem_paths(location)) == extra


def test_a_damaged_index_says_what_to_do(location):
    file = location / INDEX / INDEX_NAME
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    _put(file, bytes(data))
    cache = open_kind(location)
    with pytest.raises(
        CorruptIndex, match=r"page 1 does not match its crc32c; delete the file, and it will be rebuilt"
    ):
        list(cache.keys())


@pytest.mark.parametrize("kind", ["tail", "exact"])
def test_what_is_advised_for_a_damaged_head(tmp_path, kind):
    """The teacher writes the same head of an exact cache again; directions of a tail would be others than those of the units."""
    location = tmp_path / "cache.zarr"
    write_cache(location, [sample_of_kind(kind, 0, 5)], unit_positions=10, spec=spec_of_kind(kind))
    chunk = next(path for path in sorted(location.glob("head/**/c.*")) if path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    said = " ".join(problem.message for problem in verify_cache(location).problems)
    assert "restore the object from a copy" in said
    assert ("remove the directory head and run fs-teacher dump again" in said) == (kind == "exact")
    assert ("train with loss.tail: bucket" in said) == (kind == "tail")
