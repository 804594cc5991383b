"""From the objects of a committed unit to decoded samples, believing nothing before it is checked."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptObject, ObjectMissing, UnsafeObject
from storage.format.chunks import ChunkError, chunk_name, decode_chunk
from storage.format.v1.encoding import DecodedUnit, DecodeError, decode_unit
from storage.manifest import Manifest, array_metadata, group_document
from storage.spec import Layout
from storage.store.base import Place


def load_unit(place: Place, manifest: Manifest, layout: Layout) -> DecodedUnit:
    """Read, check and decode the objects of a unit; CorruptObject names the first bad object and its array."""
    arrays = decode_arrays(place, manifest, load_objects(place, manifest))
    try:
        return decode_unit(manifest.attributes, arrays, layout)
    except DecodeError as error:
        raise corrupt(place, manifest, error.array, str(error)) from None


def load_objects(place: Place, manifest: Manifest) -> dict[str, bytes]:
    """The bytes of every object of a unit, each of the size and sha256 that the manifest names."""
    prefix = manifest.prefix
    try:
        found = place.read_many({f"{prefix}/{path}": size for path, (size, _) in manifest.objects.items()})
    except (ObjectMissing, UnsafeObject) as error:
        path = next((path for path in manifest.objects if f"{prefix}/{path}" in str(error)), "zarr.json")
        raise corrupt(place, manifest, path, f"unreadable ({error})") from None
    objects = {path: found[f"{prefix}/{path}"] for path in manifest.objects}
    for path, data in objects.items():
        if (problem := object_problem(manifest, path, data)) is not None:
            raise corrupt(place, manifest, path, problem)
    return objects


def object_problem(manifest: Manifest, path: str, data: bytes) -> str | None:
    """What is wrong with the bytes of one object of a unit, or None."""
    size, digest = manifest.objects[path]
    if len(data) != size:
        return f"it has {len(data):,} bytes, the manifest says {size:,}"
    if hashlib.sha256(data).hexdigest() != digest:
        return "its sha256 is not the one in the manifest"
    array, _, name = path.rpartition("/")
    if name == "zarr.json":
        expected = array_metadata(array, *manifest.arrays[array]) if array else group_document(manifest.attributes)
        if data != expected:
            return "it is not the metadata that this format prescribes"
    return None


def decode_arrays(place: Place, manifest: Manifest, objects: dict[str, bytes]) -> dict[str, NDArray[Any]]:
    """The arrays in the checked objects of a unit."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in manifest.arrays.items():
        if not all(shape):
            arrays[name] = np.empty(shape, dtype=dtype)
            continue
        path = f"{name}/{chunk_name(shape)}"
        try:
            arrays[name] = decode_chunk(objects[path], np.dtype(dtype), shape)
        except ChunkError as error:
            raise corrupt(place, manifest, path, str(error)) from None
    return arrays


def corrupt(place: Place, manifest: Manifest, path: str, problem: str) -> CorruptObject:
    """The error for an object of a unit, naming place, unit and array."""
    array = path.split("/")[0] if path != "zarr.json" else None
    return CorruptObject(
        f"{place.location}/{manifest.prefix}/{path}: {problem}; unit {manifest.unit} cannot be used: "
        "restore the object from a copy, or delete the unit's manifest and dump it again",
        object=f"{manifest.prefix}/{path}",
        array=array,
    )
