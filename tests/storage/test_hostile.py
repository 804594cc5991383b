"""A cache made to harm: refused before memory grows or anything outside it is opened."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
import storage_cases
from storage_cases import key_of, open_kind, sample_of, sample_of_kind, spec_of_kind, write_cache

from storage.canonical import digest_of, seal, unseal
from storage.errors import CacheError, CorruptObject, UnsafeObject
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache


@pytest.fixture
def location(tmp_path):
    write_cache(tmp_path / "cache", [sample_of(number) for number in range(4)])
    return tmp_path / "cache"


def _forge(location: Path, change) -> None:
    """Change the manifest and give it a right digest of its own."""
    (file,) = location.glob("manifests/0*.json")
    document = unseal(file.read_bytes(), "manifest")
    change(document)
    file.write_bytes(seal(document))


def _replace(location: Path, path: str, data: bytes) -> None:
    """Put other bytes for an object of the unit and let the manifest agree."""
    import hashlib

    (unit,) = location.glob("units/0*")
    (unit / path).write_bytes(data)
    _forge(location, lambda manifest: manifest["objects"].update({path: [len(data), hashlib.sha256(data).hexdigest()]}))


def _growth_of_reading(location: Path) -> tuple[int, str]:
    """Read the first sample in a fresh process: (growth of its memory in bytes, name of the error)."""
    code = (
        "import resource, sys\n"
        "from storage.errors import CacheError\n"
        "from storage.reader import open_cache\n"
        "from storage.maintenance.verify import verify_cache\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "name = 'none'\n"
        "try:\n"
        f"    open_cache(sys.argv[1])['{key_of(0)}']\n"
        "except CacheError as error:\n"
        "    name = type(error).__name__\n"
        "problems = verify_cache(sys.argv[1]).problems\n"
        "assert problems\n"
        "print(peak() - before, name)\n"
    )
    root = Path(storage_cases.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(location)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    growth, name = done.stdout.split()
    return int(growth), name


def _with_crc(packed: bytes) -> bytes:
    return packed + google_crc32c.value(packed).to_bytes(4, "little")


@pytest.mark.parametrize("declared", [True, False])
def test_zstd_bomb(location, declared):
    bomb = bytearray(numcodecs.Blosc("zstd", 9, numcodecs.Blosc.NOSHUFFLE).encode(np.zeros(2**30, np.uint8)))
    assert len(bomb) < 2**18
    if not declared:  # claim the expected length, deliver a gigabyte
        bomb[4:8] = (4 * 40).to_bytes(4, "little")
    _replace(location, "gap/c.0.0", _with_crc(bytes(bomb)))
    growth, name = _growth_of_reading(location)
    assert name == "CorruptObject"
    assert growth < 256 * 2**20


def test_zstd_bomb_inside_an_honest_frame(location):
    """The Blosc header is that of the real chunk; the zstd frame inside it unpacks to a gigabyte."""
    inner = bytes(numcodecs.Zstd(level=3).encode(np.zeros(2**30, np.uint8)))
    head = bytes(numcodecs.Blosc("zstd", 1, numcodecs.Blosc.NOSHUFFLE).encode(np.zeros(4 * 40, np.uint8)))[:12]
    body = (20).to_bytes(4, "little") + len(inner).to_bytes(4, "little") + inner
    _replace(location, "gap/c.0.0", _with_crc(head + (16 + len(body)).to_bytes(4, "little") + body))
    growth, name = _growth_of_reading(location)
    assert name == "CorruptObject"
    assert growth < 256 * 2**20


def test_blosc_bomb(location):
    bomb = bytes(numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE).encode(np.zeros(2**28, np.uint16)))
    _replace(location, "tail/c.0.0", _with_crc(bomb))
    growth, name = _growth_of_reading(location)
    assert name == "CorruptObject"
    assert growth < 256 * 2**20


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        ("gap", [4, 10**13]),
        ("gap", [4, 39]),
        ("gap", [4, -40]),
        ("gap", [8]),
        ("gap_escape", [10**9]),
        ("id_dictionary", [501]),
        ("keys", [10**12, 32]),
    ],
)
def test_forged_shape(location, array, shape):
    _forge(location, lambda manifest: manifest["arrays"][array].__setitem__(1, shape))
    with pytest.raises(CorruptObject, match=f"array {array} has the shape"):
        open_cache(location)[key_of(0)]


def test_forged_counts(location):
    def change(manifest):
        manifest.update(samples=10**6, positions=2**31, soft_positions=2**31)

    _forge(location, change)
    growth, name = _growth_of_reading(location)
    assert name == "CorruptObject"
    assert growth < 256 * 2**20


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(attempt="../../../etc"),
        lambda manifest: manifest["objects"].update({"../../secret": [6, "0" * 64]}),
        lambda manifest: manifest["objects"].update({"/etc/passwd": [6, "0" * 64]}),
        lambda manifest: manifest.update(unit="../000000"),
        lambda manifest: manifest.update(objects=[]),
        lambda manifest: manifest.update(arrays={"gap": ["float64", [8, 40]]}),
        lambda manifest: manifest.update(statistics={"positions": "many"}),
        lambda manifest: manifest["attributes"].update(direct=-1),
        lambda manifest: manifest["attributes"].update(value_step=0),
        lambda manifest: manifest["attributes"].update(program="rm"),
        lambda manifest: manifest.pop("notes"),
        lambda manifest: manifest.update(samples="4"),
    ],
)
def test_forged_manifest(location, change):
    _forge(location, change)
    with pytest.raises(CorruptObject, match=r"manifests/000000-000000\.json"):
        open_cache(location)


@pytest.mark.parametrize("which", ["chunk", "directory", "manifest", "index", "fifo"])
def test_links_and_devices_are_not_opened(tmp_path, location, which):
    outside = tmp_path / "outside"
    open_cache(location)
    if which == "chunk":
        target = next(location.glob("units/0*/gap/c.0.0"))
    elif which == "directory":
        target = next(location.glob("units/0*/gap"))
    elif which == "manifest":
        target = next(location.glob("manifests/0*.json"))
    elif which == "index":
        target = next(location.glob("index/*.bin"))
    else:
        target = next(location.glob("units/0*/gap/c.0.0"))
    if which == "fifo":
        target.unlink()
        os.mkfifo(target)
    else:
        target.rename(outside)
        target.symlink_to(outside)
    with pytest.raises(CacheError, match=r"refused|Too many levels"):
        open_cache(location)[key_of(0)]
    report = verify_cache(location)
    assert any(target.relative_to(location).as_posix() in problem.object for problem in report.problems)


def test_a_deeply_nested_document(location):
    (file,) = location.glob("manifests/0*.json")
    file.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CorruptObject, match="not a JSON document"):
        open_cache(location)


def test_a_manifest_of_a_gigabyte(location):
    (file,) = location.glob("manifests/0*.json")
    with open(file, "r+b") as out:
        out.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeObject, match="expected at most"):
        open_cache(location)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18


def test_arrays_that_contradict_each_other(location):
    """All digests right, the content not: an id beyond the vocabulary, a token past the dictionary."""
    from storage.format.chunks import encode_chunk

    (unit,) = location.glob("units/0*")
    (file,) = location.glob("manifests/0*.json")
    manifest = json.loads(file.read_bytes())
    shapes = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in manifest["arrays"].items()}
    for array, problem in (
        ("id_dictionary", "id is not below"),
        ("id_token", "past the dictionary|length does not match"),
        ("target", "number of soft positions|not below"),
        ("samples", "have .* positions|neither 0 nor 1"),
        ("gap", "length does not match"),
        ("tail", "content"),
        ("keys", "plan|content"),
    ):
        saved, saved_manifest = unit.joinpath(array).glob("c.*"), file.read_bytes()
        chunk = next(saved)
        whole = chunk.read_bytes()
        dtype, shape = shapes[array]
        forged = np.full(shape, 200 if dtype.itemsize == 1 and array != "gap" else 255, dtype)
        _replace(location, f"{array}/{chunk.name}", encode_chunk(forged))
        problems = verify_cache(location).problems
        assert len(problems) == 1
        assert re.search(problem, problems[0].message), problems[0].message
        chunk.write_bytes(whole)
        file.write_bytes(saved_manifest)
    assert verify_cache(location).ok()


@pytest.fixture(params=["exact", "tail"])
def headed(tmp_path, request):
    """A cache with a head, and the array of it that a forger would enlarge."""
    samples = [sample_of_kind(request.param, number) for number in range(4)]
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind(request.param))
    return tmp_path / "cache", {"exact": "weight", "tail": "image"}[request.param]


def _forge_head(location: Path, change) -> None:
    """Change the document of the head and give it, and the manifest, a right digest."""
    file = location / "head" / "head.json"
    document = unseal(file.read_bytes(), "head")
    change(document)
    file.write_bytes(seal(document))
    _forge(location, lambda manifest: manifest.update(head=digest_of(document)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda head, array: head["arrays"][array].__setitem__(1, [10**13, 12]), "of the shape"),
        (lambda head, array: head["arrays"][array].__setitem__(1, [-1, 12]), "of the shape"),
        (lambda head, array: head["arrays"][array].__setitem__(0, "float64"), "'float64' of the shape"),
        (lambda head, array: head["arrays"].pop(array), "list of arrays"),
        (
            lambda head, array: head["objects"].update({f"{array}/c.0.0": [2**40, "0" * 64]}),
            "entry for .* is impossible",
        ),
        (lambda head, array: head["objects"].update({f"{array}/c.0.0": [4, "0" * 64]}), "entry for .* is impossible"),
        (lambda head, _: head["objects"].update({"../../secret": [6, "0" * 64]}), "list of objects"),
        (lambda head, _: head.update(prefix="head/../../etc"), "its prefix is"),
        (lambda head, _: head.update(prefix="/etc"), "its prefix is"),
        (lambda head, _: head.update(prefix=3), "missing or of the wrong kind"),
        (lambda head, _: head.update(scale=0), "its scale is 0"),
        (lambda head, _: head.update(scale=None), "its scale is None"),
        (lambda head, _: head.update(softcap="30"), "its softcap is '30'"),
        (lambda head, _: head.update(objects=[]), "list of objects|wrong kind"),
        (lambda head, _: head.update(spec_digest="0" * 64), "another cache"),
        (lambda head, _: head.update(more=1), "not of this format"),
        (lambda head, _: head.pop("scale"), "missing or not of this format"),
    ],
)
def test_forged_head(headed, change, problem):
    location, array = headed
    _forge_head(location, lambda head: change(head, array))
    with pytest.raises(CorruptObject, match=problem):
        open_kind(location).head()
    assert any(item.object == "head/head.json" for item in verify_cache(location).problems)


def test_a_token_table_of_a_gigabyte(tmp_path):
    """More bytes of tokens than a chunk of the head may have: refused by the document, and no object is opened."""
    write_cache(tmp_path / "cache", [sample_of_kind("exact", 0)], spec=spec_of_kind("exact"))

    def change(head):
        head["arrays"]["token_bytes"][1] = [2**30]
        head["objects"]["token_bytes/c.0"][0] = 2**30 + 4

    _forge_head(tmp_path / "cache", change)
    with pytest.raises(CorruptObject, match="array token_bytes is 'uint8' of the shape"):
        open_kind(tmp_path / "cache").head()


@pytest.mark.parametrize("name", ["state_high", "state_low"])
def test_a_bomb_among_the_states(tmp_path, name):
    write_cache(tmp_path / "cache", [sample_of_kind("exact", 0)], spec=spec_of_kind("exact"))
    bomb = bytes(numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE).encode(np.zeros(2**28, np.uint8)))
    _replace(tmp_path / "cache", f"{name}/c.0.0", _with_crc(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptObject, match="claims 268,435,456 bytes, the array has 120"):
        open_kind(tmp_path / "cache")[key_of(0)]
    assert verify_cache(tmp_path / "cache").problems
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["arrays"]["state_high"].__setitem__(1, [10**13, 12]), "array state_high has the shape"),
        (lambda m: m["arrays"]["state_high"].__setitem__(1, [40, 10**9]), "array state_high has the shape"),
        (lambda m: m["arrays"]["state_low"].__setitem__(1, [40, 24]), "array state_low has the shape"),
        (lambda m: m["arrays"]["turns"].__setitem__(1, [45, 2]), r"array turns has the shape .*at most"),
        (lambda m: m.update(soft_positions=39), "39 states of 40 positions"),
        (lambda m: m.update(head=None), "the head that it names is None"),
        (lambda m: m.update(head="x"), "the head that it names is 'x'"),
        (lambda m: m.pop("head"), "missing or not of this format"),
        (lambda m: m.update(positions=2**28, soft_positions=2**28), "counts of samples, positions"),
        (lambda m: m.update(positions=2**24, soft_positions=2**24 + 1), "counts of samples, positions"),
    ],
)
def test_forged_manifest_of_an_exact_unit(tmp_path, change, problem):
    samples = [sample_of_kind("exact", number) for number in range(4)]
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind("exact"))
    _forge(tmp_path / "cache", change)
    with pytest.raises(CorruptObject, match=problem):
        open_kind(tmp_path / "cache")


@pytest.mark.parametrize("kind", ["exact", "tail"])
def test_units_of_two_heads(tmp_path, kind):
    """States and coordinates mean nothing without the head or the basis that they were computed with."""
    samples = [sample_of_kind(kind, number) for number in range(8)]
    write_cache(tmp_path / "cache", samples, spec=spec_of_kind(kind))
    first, _ = sorted((tmp_path / "cache").glob("manifests/0*.json"))
    document = unseal(first.read_bytes(), "manifest")
    first.write_bytes(seal({**document, "head": "0" * 64}))
    with pytest.raises(CorruptObject, match="made with the head"):
        open_kind(tmp_path / "cache")
    assert any("made with the head 0000" in problem.message for problem in verify_cache(tmp_path / "cache").problems)


def test_exact_arrays_that_contradict_each_other(tmp_path):
    """All digests right, the content not."""
    from storage.format.chunks import encode_chunk

    location = tmp_path / "cache"
    write_cache(location, [sample_of_kind("exact", number) for number in range(4)], spec=spec_of_kind("exact"))
    (unit,) = location.glob("units/0*")
    (file,) = location.glob("manifests/0*.json")
    whole_manifest = file.read_bytes()
    for array, value, problem in (
        ("target", 40, "a target id is not below 40"),
        ("samples", 200, "positions, but the unit has"),
        ("turns", 200, "a flag is neither|do not add up"),
        ("state_high", 255, "not finite"),
        ("state_low", 9, "content"),
        ("keys", 9, "plan|content"),
    ):
        chunk = next(unit.joinpath(array).glob("c.*"))
        whole = chunk.read_bytes()
        dtype, shape = json.loads(whole_manifest)["arrays"][array]
        _replace(location, f"{array}/{chunk.name}", encode_chunk(np.full(shape, value, dtype)))
        problems = verify_cache(location).problems
        assert len(problems) == 1
        assert re.search(problem, problems[0].message), problems[0].message
        chunk.write_bytes(whole)
        file.write_bytes(whole_manifest)
    assert verify_cache(location).ok()
