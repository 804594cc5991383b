"""The specification of a cache: what its numbers depend on, compared whole, opaque but for five fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.canonical import canonical_json, digest_of, normalised, parse_canonical
from storage.errors import CorruptObject, InvalidSpec, SpecMismatch, UnsupportedFormat

FORMAT = "firstsight-cache"
FORMAT_VERSION = 1
ROOT_PATH = "zarr.json"
ROOT_LIMIT = 8 * 2**20
MAX_VOCABULARY = 2**24
MAX_TOP_K = 2**20
MAX_NODES = 16


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields of a specification that the arrays depend on."""

    top_k: int
    """Stored entries per soft position."""
    temperatures: tuple[float, ...]
    """Node temperatures of the tail, ascending."""
    vocabulary_size: int
    """Rows of the student's head; every stored id is smaller."""
    shared_ids: tuple[tuple[int, int], ...]
    """Ascending half-open ranges of the student ids that both vocabularies have."""

    def shared_mask(self) -> NDArray[np.bool_]:
        """[vocabulary_size] True where both vocabularies have the student id."""
        mask = np.zeros(self.vocabulary_size, dtype=np.bool_)
        for start, stop in self.shared_ids:
            mask[start:stop] = True
        return mask


def complete_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A plain, normalised copy of a requested specification with the format version; InvalidSpec if unusable."""
    if not isinstance(spec, Mapping):
        raise InvalidSpec(f"a cache specification is a mapping, got {type(spec).__name__}")
    complete = {**normalised(dict(spec)), "format_version": FORMAT_VERSION}
    if spec.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise InvalidSpec(
            f"spec.format_version: this program writes {FORMAT_VERSION}, got {spec['format_version']!r}; leave it out"
        )
    try:
        canonical_json(complete)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"a cache specification holds JSON values only: {error}") from None
    layout_of(complete)
    return complete


def layout_of(spec: Mapping[str, Any]) -> Layout:
    """The checked layout fields of a specification; InvalidSpec naming the field."""
    top_k = _whole(spec, "top_k", 1, MAX_TOP_K)
    vocabulary_size = _whole(spec, "vocabulary_size", 1, MAX_VOCABULARY)
    nodes = spec.get("temperatures")
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES or not all(map(_positive, nodes)):
        raise InvalidSpec(f"spec.temperatures: expected 1 to {MAX_NODES} positive numbers, got {nodes!r}")
    if any(low >= high for low, high in pairwise(nodes)):
        raise InvalidSpec(f"spec.temperatures: expected ascending and distinct numbers, got {nodes!r}")
    ranges = spec.get("shared_ids")
    if not isinstance(ranges, list) or not all(_range(item) for item in ranges):
        raise InvalidSpec("spec.shared_ids: expected a list of [start, stop) pairs of whole numbers")
    edges = [edge for pair in ranges for edge in pair]
    if any(low > high for low, high in pairwise(edges)) or (edges and edges[-1] > vocabulary_size):
        raise InvalidSpec(f"spec.shared_ids: expected ascending, disjoint ranges within [0, {vocabulary_size})")
    shared = sum(stop - start for start, stop in ranges)
    if shared < top_k:
        raise InvalidSpec(f"spec.top_k: {top_k} entries cannot be stored of {shared} shared ids; lower top_k")
    return Layout(
        top_k=top_k,
        temperatures=tuple(float(node) for node in nodes),
        vocabulary_size=vocabulary_size,
        shared_ids=tuple((start, stop) for start, stop in ranges),
    )


def root_document(spec: Mapping[str, Any]) -> bytes:
    """The bytes of the root group's metadata, which carry the specification and its digest."""
    attributes = {"format": FORMAT, "spec": spec, "spec_digest": digest_of(spec)}
    return canonical_json({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def parse_root(data: bytes, location: str) -> dict[str, Any]:
    """The specification in the root group's metadata; CorruptObject, UnsupportedFormat."""
    where = f"{location}/{ROOT_PATH}"
    document = parse_canonical(data, where)
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise UnsupportedFormat(f"{where}: a Zarr group, but no {FORMAT}; give the path of a cache")
    spec = attributes.get("spec")
    if not isinstance(spec, dict) or root_document(spec) != data:
        raise CorruptObject(f"{where}: the specification does not match its digest; the file was changed", object=where)
    if spec.get("format_version") != FORMAT_VERSION:
        raise UnsupportedFormat(
            f"{where}: format version {spec.get('format_version')!r}, this program reads {FORMAT_VERSION}; "
            "use the version of the program that wrote it, or a newer one"
        )
    try:
        layout_of(spec)
    except InvalidSpec as error:
        raise CorruptObject(f"{where}: {error}", object=where) from None
    return spec


def require_same(cached: Mapping[str, Any], requested: Mapping[str, Any], location: str) -> None:
    """SpecMismatch with every differing dotted path, unless both specifications are equal."""
    differences = list(_differences("", cached, requested))
    if differences:
        raise SpecMismatch(location, differences)


def _differences(path: str, cached: Any, requested: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(cached, Mapping) and isinstance(requested, Mapping):
        found = []
        for key in sorted({*cached, *requested}):
            inner = f"{path}.{key}" if path else key
            found += _differences(inner, cached.get(key, SpecMismatch.ABSENT), requested.get(key, SpecMismatch.ABSENT))
        return found
    return [] if type(cached) is type(requested) and cached == requested else [(path, cached, requested)]


def _whole(spec: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = spec.get(name)
    if type(value) is not int or not low <= value <= high:
        raise InvalidSpec(f"spec.{name}: expected a whole number from {low:,} to {high:,}, got {value!r}")
    return value


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _range(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(type(edge) is int and edge >= 0 for edge in item)
