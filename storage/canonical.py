"""Canonical JSON: one byte string per document, so that any changed byte is noticed.

A sealed document carries the sha256 of itself. A reader parses it, writes it again and compares the bytes:
a flipped bit then gives invalid JSON, different bytes or a different digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from storage.errors import CorruptObject

DIGEST = "digest"


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and a final newline; ValueError for NaN and infinities."""
    return b"".join(_parts(value))


def _parts(value: Any) -> Iterator[bytes]:
    """The same bytes in parts, one for each entry of a list in the document: of a large plan no second copy is held."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for number, key in enumerate(sorted(value)):
            yield f"{',' if number else '{'}{_text(key)}:".encode()
            yield from (
                _parts_of_list(value[key])
                if value[key] and isinstance(value[key], list)
                else [_text(value[key]).encode()]
            )
        yield b"}\n" if value else b"{}\n"
    else:
        yield _text(value).encode() + b"\n"


def _parts_of_list(entries: list[Any]) -> Iterator[bytes]:
    for number, entry in enumerate(entries):
        yield f"{',' if number else '['}{_text(entry)}".encode()
    yield b"]"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def normalised(value: Any) -> Any:
    """The JSON value with tuples as lists and whole floats as integers, so that 1 and 1.0 have one digest."""
    if isinstance(value, dict):
        return {str(key): normalised(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalised(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def digest_of(value: Any) -> str:
    """The sha256 of the canonical JSON of a value, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def seal(document: dict[str, Any]) -> bytes:
    """The canonical bytes of a document with its own digest added."""
    return canonical_json({**document, DIGEST: digest_of(document)})


def unseal(data: bytes, path: str) -> dict[str, Any]:
    """The document in sealed bytes, without its digest; CorruptObject naming `path` if any byte differs."""
    document = parse_canonical(data, path)
    found = document.pop(DIGEST, None)
    expected = digest_of(document)
    if found != expected:
        raise CorruptObject(
            f"{path}: the document's digest is {found}, its content has {expected}; the file was changed or damaged",
            object=path,
        )
    return document


def _is_text_of(document: Any, data: bytes) -> bool:
    start = 0
    for part in _parts(document):
        if not data.startswith(part, start):
            return False
        start += len(part)
    return start == len(data)


def parse_canonical(data: bytes, path: str) -> dict[str, Any]:
    """The JSON object in canonical bytes; CorruptObject naming `path` for anything else."""
    try:
        document = json.loads(data)
        same = _is_text_of(document, data)
    except (ValueError, RecursionError) as error:
        raise CorruptObject(
            f"{path}: not a JSON document ({error}); the file was changed or damaged", object=path
        ) from None
    if not same or not isinstance(document, dict):
        raise CorruptObject(f"{path}: not canonical JSON; the file was changed or damaged", object=path)
    return document
