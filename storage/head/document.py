"""`head/head.json`: the one document whose creation completes the head, and what a reader demands of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.canonical import canonical_json, digest_of, seal, unseal
from storage.errors import CorruptObject, ObjectMissing
from storage.format.base import FormatVersion
from storage.format.head_table import MAX_TOKEN_BYTES, HeadSizes
from storage.head.content import scalar_problem
from storage.store.base import Store

HEAD = "head"
HEAD_PATH = f"{HEAD}/head.json"
FIXED = f"{HEAD}/arrays"
"""The prefix of the arrays of a head that needs no attempts."""
HEAD_LIMIT = 8 * 2**20
ATTEMPT = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
GROUP = canonical_json({"attributes": {}, "node_type": "group", "zarr_format": 3})
"""The Zarr metadata of a group without attributes."""


@dataclass(frozen=True, kw_only=True)
class HeadDocument:
    """What `head.json` says."""

    prefix: str
    """The prefix of the arrays."""
    scale: float
    softcap: float | None
    shapes: Mapping[str, tuple[int, ...]]
    objects: Mapping[str, tuple[int, str]]
    """Path below the prefix -> bytes and sha256."""
    digest: str
    """The digest of the head."""


def head_bytes(
    version: FormatVersion,
    *,
    prefix: str,
    scale: float,
    softcap: float | None,
    shapes: Mapping[str, tuple[int, ...]],
    objects: Mapping[str, tuple[int, str]],
) -> tuple[bytes, str]:
    """The sealed document and the digest of the head."""
    sizes = sizes_of(version)
    document = {
        "format_version": version.number,
        "spec_digest": version.spec_digest,
        "prefix": prefix,
        "scale": scale,
        "softcap": softcap,
        "arrays": {name: [sizes.dtypes[name].name, list(shape)] for name, shape in shapes.items()},
        "objects": {path: list(entry) for path, entry in objects.items()},
    }
    return seal(document), digest_of(document)


def sizes_of(version: FormatVersion) -> HeadSizes:
    """The sizes of the head of a cache that has one."""
    if version.head is None:
        raise ValueError("a cache of this specification has no head")
    return version.head


def expected_objects(sizes: HeadSizes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Path below the prefix -> bytes, of every object of a head with arrays of these shapes."""
    found = {"zarr.json": len(GROUP)}
    for name, shape in shapes.items():
        found[f"{name}/zarr.json"] = len(sizes.document(name, shape))
        found |= dict.fromkeys(sizes.chunks(name, shape), sizes.chunk_bytes(name, shape))
    return found


def read_head_document(store: Store, version: FormatVersion) -> HeadDocument:
    """The checked document of the head; nothing that it names is opened.

    Raises:
        ObjectMissing: the head is not written, or not complete.
        CorruptObject: the document is damaged, or is not what the specification demands.
    """
    where = f"{store.location}/{HEAD_PATH}"
    try:
        data = store.read(HEAD_PATH, limit=HEAD_LIMIT)
    except ObjectMissing:
        raise ObjectMissing(f"{where} not found: the cache has no head yet; run fs-teacher dump again") from None
    document = unseal(data, where)
    try:
        problem = _problem(document, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"a field is missing or of the wrong kind ({error!r})"
    if problem:
        raise CorruptObject(f"{where}: {problem}; the head cannot be read", object=HEAD_PATH)
    return HeadDocument(
        prefix=document["prefix"],
        scale=float(document["scale"]),
        softcap=None if document["softcap"] is None else float(document["softcap"]),
        shapes={name: tuple(shape) for name, (_, shape) in document["arrays"].items()},
        objects={path: (size, sha256) for path, (size, sha256) in document["objects"].items()},
        digest=digest_of(document),
    )


def _problem(document: dict[str, Any], version: FormatVersion) -> str | None:
    """What is wrong with the document of a head, before anything that it names is opened."""
    sizes = sizes_of(version)
    names = {"format_version", "spec_digest", "prefix", "scale", "softcap", "arrays", "objects"}
    if set(document) != names:
        return f"the fields {sorted(names ^ set(document))} are missing or not of this format"
    if (document["format_version"], document["spec_digest"]) != (version.number, version.spec_digest):
        return "it belongs to another cache or format version"
    parent, _, name = document["prefix"].partition("/")
    if parent != HEAD or (not ATTEMPT.fullmatch(name) if sizes.attempts else document["prefix"] != FIXED):
        return f"its prefix is {document['prefix']!r}"
    if problem := scalar_problem(document["scale"], document["softcap"]):
        return problem
    if set(document["arrays"]) != set(sizes.names()):
        return "its list of arrays is not the one of this format"
    shapes = {}
    for name, (dtype, shape) in document["arrays"].items():
        own = shape[0] if shape and type(shape[0]) is int and 0 <= shape[0] <= MAX_TOKEN_BYTES else 0
        if dtype != sizes.dtypes[name].name or tuple(shape) != sizes.shape(name, own):
            return f"array {name} is {dtype!r} of the shape {shape}, expected {sizes.dtypes[name]} {sizes.shape(name, own)}"
        shapes[name] = tuple(shape)
    expected = expected_objects(sizes, shapes)
    if set(document["objects"]) != set(expected):
        return "its list of objects is not the one of this format"
    for path, (size, sha256) in document["objects"].items():
        if type(size) is not int or size != expected[path] or not _SHA256.fullmatch(sha256):
            return f"its entry for {path} is impossible"
    return None
