"""The specification of a cache: what its numbers depend on. Compared as a whole, opaque except for the fields that the format needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.canonical import canonical_json, digest_of, normalised, parse_canonical
from storage.errors import CorruptObject, InvalidSpec, SpecMismatch, UnsupportedFormat
from storage.format import VERSIONS, WRITTEN, format_of
from storage.format.base import FormatVersion

FORMAT = "firstsight-cache"
ROOT_PATH = "zarr.json"
ROOT_LIMIT = 8 * 2**20
VERSION_2_FIELDS = ("targets", "tail_rank", "turns", "hidden_size", "state_dtype", "head")
"""Fields that have no effect in a specification of version 1."""


def complete_spec(spec: Mapping[str, Any], number: int = WRITTEN) -> dict[str, Any]:
    """A plain, normalised copy of a requested specification; InvalidSpec if unusable.

    Args:
        spec: a JSON object.
        number: the format version where the specification does not state one.
    """
    if not isinstance(spec, Mapping):
        raise InvalidSpec(f"a cache specification must be a mapping, got {type(spec).__name__}")
    complete = {"format_version": number, **normalised(dict(spec))}
    number = complete["format_version"]
    if type(number) is not int or number not in VERSIONS:
        raise InvalidSpec(
            f"spec.format_version: this program writes {' and '.join(map(str, VERSIONS))}, got {number!r}; leave it out"
        )
    if number == 1 and (newer := [name for name in VERSION_2_FIELDS if name in complete]):
        raise InvalidSpec(f"spec.{newer[0]}: format version 1 has no such field; state format_version: 2")
    try:
        canonical_json(complete)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"a cache specification holds JSON values only: {error}") from None
    format_of(complete)
    return complete


def root_document(spec: Mapping[str, Any]) -> bytes:
    """The bytes of the root group's metadata, which carry the specification and its digest."""
    attributes = {"format": FORMAT, "spec": spec, "spec_digest": digest_of(spec)}
    return canonical_json({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def parse_root(data: bytes, location: str) -> FormatVersion:
    """The format of a cache by the specification in its root group's metadata; CorruptObject, UnsupportedFormat."""
    where = f"{location}/{ROOT_PATH}"
    document = parse_canonical(data, where)
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise UnsupportedFormat(f"{where}: a Zarr group, but not a {FORMAT}; give the path of a cache")
    spec = attributes.get("spec")
    if not isinstance(spec, dict) or root_document(spec) != data:
        raise CorruptObject(f"{where}: the specification does not match its digest; the file was changed", object=where)
    try:
        return format_of(spec)
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"{where}: {error}") from None
    except InvalidSpec as error:
        raise CorruptObject(f"{where}: {error}", object=where) from None


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
