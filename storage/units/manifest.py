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
from storage.format.base import FormatVersion
from storage.format.table import Counts
from storage.store.base import Store

MANIFESTS = "manifests"
UNITS = "units"
MANIFEST_LIMIT = 8 * 2**20
UNIT_NAME = re.compile(r"\d{6}-\d{6}")
_ATTEMPT = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


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
    head: str | None = None
    """The digest of the cache's head; None: the cache has none. From version 2 on."""

    @property
    def counts(self) -> Counts:
        """How much the unit holds."""
        return Counts(samples=self.samples, positions=self.positions, soft_positions=self.soft_positions)

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


def committed_units(store: Store) -> list[str]:
    """The sorted names of the units that have a manifest."""
    names = (name.removesuffix(".json") for name in store.names(MANIFESTS) if name.endswith(".json"))
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


def manifest_bytes(manifest: Manifest, version: FormatVersion) -> bytes:
    """The sealed document of a manifest of a cache of this format."""
    document = dict(vars(manifest))
    document["arrays"] = {name: [dtype, list(shape)] for name, (dtype, shape) in manifest.arrays.items()}
    document["objects"] = {path: list(entry) for path, entry in manifest.objects.items()}
    if not version.names_head:
        del document["head"]
    return seal({**document, "format_version": version.number})


def read_manifest(store: Store, unit: str, version: FormatVersion) -> Manifest:
    """The checked manifest of a unit; ObjectMissing, CorruptObject naming it."""
    path = manifest_path(unit)
    where = f"{store.location}/{path}"
    document = unseal(store.read(path, limit=MANIFEST_LIMIT), where)
    try:
        problem = _problem(document, unit, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"a field is missing or of the wrong kind ({error!r})"
    if problem:
        raise CorruptObject(f"{where}: {problem}; the unit cannot be read", object=path)
    del document["format_version"]
    document["arrays"] = {name: (dtype, tuple(shape)) for name, (dtype, shape) in document["arrays"].items()}
    document["objects"] = {name: (size, digest) for name, (size, digest) in document["objects"].items()}
    return Manifest(**document)


def _problem(document: dict[str, Any], unit: str, version: FormatVersion) -> str | None:
    """What is wrong with a manifest, before any object that it names is opened."""
    names = {item.name for item in fields(Manifest)} | {"format_version"}
    if not version.names_head:
        names.remove("head")
    if set(document) != names:
        return f"the fields {sorted(names ^ set(document))} are missing or not of this format"
    identity = (document["format_version"], document["unit"], document["spec_digest"])
    if identity != (version.number, unit, version.spec_digest):
        return "it belongs to another unit, cache or format version"
    if not _ATTEMPT.fullmatch(document["attempt"]):
        return f"its attempt name is {document['attempt']!r}"
    for name in ("skipped", "statistics", "notes", "attributes", "arrays", "objects"):
        if not isinstance(document[name], dict):
            return f"its field {name} is not a JSON object"
    counts = Counts(**{item.name: document[item.name] for item in fields(Counts)})
    shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in document["arrays"].items()}
    if problem := version.problem(document["attributes"], shapes, counts):
        return problem
    if set(document["objects"]) != version.table.objects(shapes):
        return "its list of objects is not the one of this format"
    for path, (size, digest) in document["objects"].items():
        if type(size) is not int or not 0 < size < 2**31 or not _DIGEST.fullmatch(digest):
            return f"its entry for {path} is impossible"
    head = document.get("head")
    if (version.head is None) != (head is None) or (head is not None and not _DIGEST.fullmatch(head)):
        return f"the head that it names is {head!r}"
    if any(type(value) not in (int, float) for value in document["statistics"].values()):
        return "a statistic is not a number"
    return None
