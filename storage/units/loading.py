"""From the objects of a committed unit to decoded samples, trusting nothing before it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptObject, ObjectMissing, UnsafeObject
from storage.format.base import DecodedUnit, DecodeError, ExactUnit, FormatVersion, TopKVersion
from storage.format.chunks import ChunkError, decode_chunk, join_chunks
from storage.format.v2.exact import STATE_ARRAYS, Exact2
from storage.store.base import Store
from storage.units.manifest import Manifest, group_document


def load_unit(store: Store, manifest: Manifest, version: TopKVersion) -> DecodedUnit:
    """Read, check and decode the objects of a unit; CorruptObject names the first bad object and its array."""
    arrays = decode_arrays(store, manifest, version, load_objects(store, manifest, version, manifest.objects))
    try:
        return version.decode(manifest.attributes, arrays)
    except DecodeError as error:
        raise corrupt(store, manifest, error.array, str(error)) from None


def load_exact_unit(store: Store, manifest: Manifest, version: Exact2) -> ExactUnit:
    """The samples and target ids of a unit of kind exact, as `load_unit`; no object with states is opened."""
    paths = [path for path in manifest.objects if path.split("/")[0] not in STATE_ARRAYS]
    objects = load_objects(store, manifest, version, paths)
    names = [name for name in manifest.arrays if name not in STATE_ARRAYS]
    try:
        return version.decode(manifest.attributes, decode_arrays(store, manifest, version, objects, names))
    except DecodeError as error:
        raise corrupt(store, manifest, error.array, str(error)) from None


def load_states(store: Store, manifest: Manifest, version: Exact2, chunk: int) -> NDArray[Any]:
    """The bits of the states in one chunk of a unit of kind exact; CorruptObject."""
    planes = []
    for name in STATE_ARRAYS:
        dtype, shape = manifest.arrays[name]
        chunk_shape = version.table.arrays[name].chunk_shape(shape)
        path = f"{name}/c.{chunk}.0"
        (data,) = load_objects(store, manifest, version, [path]).values()
        try:
            planes.append(decode_chunk(data, np.dtype(dtype), chunk_shape)[: shape[0] - chunk * chunk_shape[0]])
        except ChunkError as error:
            raise corrupt(store, manifest, path, str(error)) from None
    try:
        return version.decode_states(*planes)
    except DecodeError as error:
        raise corrupt(store, manifest, f"{error.array}/c.{chunk}.0", str(error)) from None


def load_objects(store: Store, manifest: Manifest, version: FormatVersion, paths: Collection[str]) -> dict[str, bytes]:
    """The bytes of some objects of a unit, each of the size and sha256 that the manifest names."""
    prefix = manifest.prefix
    try:
        found = store.read_many({f"{prefix}/{path}": manifest.objects[path][0] for path in paths})
    except (ObjectMissing, UnsafeObject) as error:
        path = next((path for path in paths if f"{prefix}/{path}" in str(error)), "zarr.json")
        raise corrupt(store, manifest, path, f"unreadable ({error})") from None
    objects = {path: found[f"{prefix}/{path}"] for path in paths}
    for path, data in objects.items():
        if (problem := object_problem(manifest, version, path, data)) is not None:
            raise corrupt(store, manifest, path, problem)
    return objects


def object_problem(manifest: Manifest, version: FormatVersion, path: str, data: bytes) -> str | None:
    """What is wrong with the bytes of one object of a unit, or None."""
    size, digest = manifest.objects[path]
    if len(data) != size:
        return f"it has {len(data):,} bytes, but the manifest says {size:,}"
    if hashlib.sha256(data).hexdigest() != digest:
        return "its sha256 is not the one in the manifest"
    array, _, name = path.rpartition("/")
    if name == "zarr.json":
        expected = (
            version.table.document(array, *manifest.arrays[array]) if array else group_document(manifest.attributes)
        )
        if data != expected:
            return "it is not the metadata that this format prescribes"
    return None


def decode_arrays(
    store: Store,
    manifest: Manifest,
    version: FormatVersion,
    objects: Mapping[str, bytes],
    names: Collection[str] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays in the checked objects of a unit: all, or those of some names."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in manifest.arrays if names is None else names:
        dtype, shape = manifest.arrays[name]
        chunk_shape = version.table.arrays[name].chunk_shape(shape)
        chunks = []
        for path, part in version.table.chunks(name, shape).items():
            try:
                chunks.append((part, decode_chunk(objects[path], np.dtype(dtype), chunk_shape)))
            except ChunkError as error:
                raise corrupt(store, manifest, path, str(error)) from None
        arrays[name] = join_chunks(chunks, np.dtype(dtype), shape)
    return arrays


def corrupt(store: Store, manifest: Manifest, path: str, problem: str) -> CorruptObject:
    """The error for an object of a unit, naming store, unit and array."""
    array = path.split("/")[0] if path != "zarr.json" else None
    return CorruptObject(
        f"{store.location}/{manifest.prefix}/{path}: {problem}; unit {manifest.unit} cannot be used: "
        "restore the object from a copy, or delete the unit's manifest and dump it again",
        object=f"{manifest.prefix}/{path}",
        array=array,
    )
