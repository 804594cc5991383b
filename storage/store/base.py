"""Where a cache lies: the few operations on objects that the rest of the room needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from storage.errors import UnsafeObject

_PART = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")
CLOUD_SCHEMES = ("s3://", "gs://", "az://")


class Place(Protocol):
    """A flat set of immutable objects under relative paths with '/' between their parts."""

    location: str

    def read(self, path: str, *, limit: int) -> bytes:
        """The bytes of an object. ObjectMissing; UnsafeObject if it is larger than `limit` bytes or no plain file."""

    def read_many(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The bytes of several objects, path -> limit in bytes; as `read`."""

    def size(self, path: str) -> int | None:
        """The size of an object in bytes; None if it is not there."""

    def create(self, path: str, data: bytes) -> bool:
        """Create an object exclusively and durably. False: it exists already, with whatever content."""

    def write_tree(self, prefix: str, files: Mapping[str, bytes]) -> None:
        """Write objects under a fresh prefix and make them durable; no other process sees them as committed."""

    def names(self, prefix: str) -> list[str]:
        """The sorted names directly under a prefix, of objects and of prefixes; empty if there is none."""

    def tree(self, prefix: str) -> dict[str, int]:
        """All objects under a prefix: path relative to it -> size in bytes."""

    def temporaries(self) -> dict[str, tuple[int, float]]:
        """What interrupted `create` calls left: path -> bytes, last change in seconds since the epoch."""

    def changed(self, prefix: str) -> int | None:
        """A number that differs after an object was created or removed directly under a prefix; None if unknown."""

    def delete_tree(self, prefix: str) -> int:
        """Remove what is there of the objects under a prefix, or the one object of that path; the bytes freed."""


def checked_path(path: str) -> list[str]:
    """The parts of a relative path; UnsafeObject if one of them could leave the cache or is no plain name."""
    parts = path.split("/")
    for part in parts:
        if not _PART.fullmatch(part):
            raise UnsafeObject(f"{path!r} is not a valid object name of a cache; refused")
    return parts


def open_place(location: str | Path) -> Place:
    """The place of a local path or of an s3://, gs://, az:// address."""
    if isinstance(location, str) and location.startswith(CLOUD_SCHEMES):
        from storage.store.object_store import CloudPlace

        return CloudPlace(location)
    from storage.store.local import LocalPlace

    return LocalPlace(location)
