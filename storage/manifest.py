"""The manifest of a unit: the one object whose creation commits it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.canonical import canonical_json, seal, unseal
from storage.errors import CorruptObject
from storage.format.chunks import array_document, chunk_name
from storage.format.v1.encoding import AXES
from storage.spec import FORMAT_VERSION, Layout
from storage.store.base import Place

MANIFESTS = "manifests"
UNITS = "units"
MANIFEST_LIMIT = 8 * 2**20
MAX_UNIT_VALUES = 2**24
MAX_UNIT_SAMPLES = 2**20
UNIT_NAME = re.compile(r"\d{6}-\d{6}")
_ATTEMPT = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DTYPES: dict[str, tuple[str, ...]] = {
    "keys": ("uint8",),
    "samples": ("uint32",),
    "target": ("uint32",),
    "target_logprob": ("float16",),
    "tail": ("uint16",),
    "gap": ("uint8",),
    "gap_escape": ("uint32",),
    "id_token": ("uint8",),
    "id_extra": ("uint8", "uint16"),
    "id_dictionary": ("uint32",),
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one attempt committed as a unit."""

    unit: str
    attempt: str
    spec_digest: str
    samples: int
    positions: int
    soft_positions: int
    skipped: dict[str, str]
    """Sample key -> why the dump skipped it."""
    statistics: dict[str, float]
    """Sums that add up over units."""
    notes: dict[str, Any]
    attributes: dict[str, Any]
    """What decoding needs: see docs/FORMAT.md."""
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    """Array name -> dtype name and shape."""
    objects: dict[str, tuple[int, str]]
    """Path below the attempt -> bytes and sha256."""
    content_digest: str
    """sha256 of what the arrays hold, whatever the codecs made of it."""

    @property
    def prefix(self) -> str:
        """Where the objects of the attempt lie."""
        return attempt_prefix(self.unit, self.attempt)


def attempt_prefix(unit: str, attempt: str) -> str:
    """The prefix under which an attempt at a unit writes its objects."""
    return f"{UNITS}/{unit}.{attempt}"


def split_attempt(name: str) -> tuple[str, str] | None:
    """The unit and the attempt in the name of an attempt's prefix; None for any other name."""
    unit, _, attempt = name.partition(".")
    return (unit, attempt) if UNIT_NAME.fullmatch(unit) and _ATTEMPT.fullmatch(attempt) else None


def manifest_path(unit: str) -> str:
    """The path of the manifest that commits a unit."""
    return f"{MANIFESTS}/{unit}.json"


def committed_units(place: Place) -> list[str]:
    """The sorted names of the units that have a manifest."""
    names = (name.removesuffix(".json") for name in place.names(MANIFESTS) if name.endswith(".json"))
    return [name for name in names if UNIT_NAME.fullmatch(name)]


def group_document(attributes: dict[str, Any]) -> bytes:
    """The canonical Zarr v3 metadata of a unit's group."""
    return canonical_json({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def content_digest(arrays: dict[str, NDArray[Any]]) -> str:
    """The sha256 over name, dtype, shape and little-endian bytes of every array, in the order of the names."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(canonical_json([name, array.dtype.name, list(array.shape)]))
        total.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return total.hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The sealed document of a manifest."""
    document = dict(vars(manifest))
    document["arrays"] = {name: [dtype, list(shape)] for name, (dtype, shape) in manifest.arrays.items()}
    document["objects"] = {path: list(entry) for path, entry in manifest.objects.items()}
    return seal({**document, "format_version": FORMAT_VERSION})


def read_manifest(place: Place, unit: str, layout: Layout, spec_digest: str) -> Manifest:
    """The checked manifest of a unit; ObjectMissing, CorruptObject naming it."""
    path = manifest_path(unit)
    where = f"{place.location}/{path}"
    document = unseal(place.read(path, limit=MANIFEST_LIMIT), where)
    try:
        problem = _problem(document, unit, layout, spec_digest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"a field is missing or of the wrong kind ({error!r})"
    if problem:
        raise CorruptObject(f"{where}: {problem}; the unit cannot be read", object=path)
    del document["format_version"]
    document["arrays"] = {name: (dtype, tuple(shape)) for name, (dtype, shape) in document["arrays"].items()}
    document["objects"] = {name: (size, digest) for name, (size, digest) in document["objects"].items()}
    return Manifest(**document)


def _problem(document: dict[str, Any], unit: str, layout: Layout, spec_digest: str) -> str | None:
    """What is wrong with a manifest, before any object that it names is opened."""
    names = {item.name for item in fields(Manifest)} | {"format_version"}
    if set(document) != names:
        return f"the fields {sorted(names ^ set(document))} are missing or not of this format"
    identity = (document["format_version"], document["unit"], document["spec_digest"])
    if identity != (FORMAT_VERSION, unit, spec_digest):
        return "it belongs to another unit, cache or format version"
    if not _ATTEMPT.fullmatch(document["attempt"]):
        return f"its attempt name is {document['attempt']!r}"
    counts = [document[name] for name in ("samples", "positions", "soft_positions")]
    limits = (MAX_UNIT_SAMPLES, MAX_UNIT_VALUES, counts[1])
    if any(type(count) is not int or not 0 <= count <= limit for count, limit in zip(counts, limits, strict=True)):
        return f"its counts of samples, positions and soft positions are {counts}"
    if document["soft_positions"] * max(layout.top_k, len(layout.temperatures)) > MAX_UNIT_VALUES:
        return f"it has more than {MAX_UNIT_VALUES:,} stored entries"
    shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in document["arrays"].items()}
    if problem := _shape_problem(shapes, counts[0], counts[1], counts[2], layout):
        return problem
    if set(document["objects"]) != expected_objects(shapes):
        return "its list of objects is not the one of this format"
    for path, (size, digest) in document["objects"].items():
        if type(size) is not int or not 0 < size < 2**31 or not _DIGEST.fullmatch(digest):
            return f"its entry for {path} is impossible"
    for name in ("skipped", "statistics", "notes", "attributes"):
        if not isinstance(document[name], dict):
            return f"its field {name} is no JSON object"
    if any(type(value) not in (int, float) for value in document["statistics"].values()):
        return "a statistic is no number"
    return _attribute_problem(document["attributes"])


def _attribute_problem(attributes: dict[str, Any]) -> str | None:
    if set(attributes) != {"direct", "value_step", "tail_step", "tail_origin"}:
        return f"its attributes are {sorted(attributes)}"
    if type(attributes["direct"]) is not int or not 0 <= attributes["direct"] <= 256:
        return f"its attribute direct is {attributes['direct']!r}"
    for name in ("value_step", "tail_step", "tail_origin"):
        if type(attributes[name]) not in (int, float) or not 0 < attributes[name] < 1000:
            return f"its attribute {name} is {attributes[name]!r}"
    return None


def _shape_problem(
    shapes: dict[str, tuple[str, tuple[int, ...]]], samples: int, positions: int, soft: int, layout: Layout
) -> str | None:
    entries = soft * layout.top_k
    fixed = {
        "keys": (samples, 32),
        "samples": (samples, 2),
        "target": (positions,),
        "target_logprob": (soft,),
        "tail": (len(layout.temperatures), soft),
        "gap": ((layout.top_k + 1) // 2, soft),
        "id_token": (layout.top_k, soft),
    }
    bounded = {"gap_escape": entries, "id_extra": entries, "id_dictionary": min(entries, layout.vocabulary_size)}
    if set(shapes) != set(AXES):
        return "its list of arrays is not the one of this format"
    for name, (dtype, shape) in shapes.items():
        if dtype not in _DTYPES[name]:
            return f"array {name} has dtype {dtype!r}"
        if any(type(length) is not int or length < 0 for length in shape):
            return f"array {name} has the shape {shape}"
        if name in fixed and shape != fixed[name]:
            return f"array {name} has the shape {shape}, expected {fixed[name]}"
        if name in bounded and (len(shape) != 1 or shape[0] > bounded[name]):
            return f"array {name} has the shape {shape}, expected at most {bounded[name]:,} entries"
    return None


def expected_objects(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> set[str]:
    """The paths of all objects of a unit with these arrays: an array without entries has no chunk."""
    paths = {"zarr.json"}
    for name, (_, shape) in arrays.items():
        paths.add(f"{name}/zarr.json")
        if all(shape):
            paths.add(f"{name}/{chunk_name(shape)}")
    return paths


def array_metadata(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """The metadata document that an array of this name, dtype and shape has in this format."""
    return array_document(np.dtype(dtype), shape, AXES[name])
