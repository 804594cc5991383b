"""Where the bytes of a cache lie: the few operations on objects that the rest of storage needs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from storage.errors import UnsafeObject

_PART = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")
CLOUD_SCHEMES = ("s3://", "gs://", "az://")


class Store(ABC):
    """A flat set of immutable objects under relative paths with '/' between their parts.

    Every operation raises StoreError where the file system or the service refuses it, and UnsafeObject for a path that
    could leave the cache. `tests/storage/store_suite.py` holds what every store must do.
    """

    location: str
    """The local path or the address, for messages and for opening the store again."""

    @abstractmethod
    def read(self, path: str, *, limit: int) -> bytes:
        """The bytes of an object. ObjectMissing; UnsafeObject if it is larger than `limit` bytes or not a plain file."""

    @abstractmethod
    def read_many(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The bytes of several objects, path -> limit in bytes; as `read`."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """The size of an object in bytes; None if there is none."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Create an object exclusively and durably. Returns whether it was created.

        False: it exists already. A store that repeats requests also returns True if the object exists with exactly
        these bytes: its first request may have succeeded and the response been lost.
        """

    @abstractmethod
    def write_tree(self, prefix: str, files: Mapping[str, bytes]) -> None:
        """Write objects under a fresh prefix and make them durable; no other process sees them as committed."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """The sorted names directly under a prefix, of objects and of prefixes; empty if there are none."""

    @abstractmethod
    def tree(self, prefix: str) -> dict[str, int]:
        """All objects under a prefix: path relative to it -> size in bytes."""

    @abstractmethod
    def temporaries(self) -> dict[str, tuple[int, float]]:
        """What interrupted `create` calls left: path -> bytes, last change in seconds since the epoch."""

    @abstractmethod
    def changed(self, prefix: str) -> int | None:
        """A number that differs after an object was created or removed directly under a prefix; None if unknown."""

    @abstractmethod
    def delete_tree(self, prefix: str) -> int:
        """Remove the objects under a prefix, or the one object of that path, if there are any. Returns the bytes freed."""

    @abstractmethod
    def local_file(self, path: str) -> Path | None:
        """The file that holds the object of a path, to be mapped or replaced; None where objects are not local files."""


Location = str | Path | Store
"""A local path, an s3://, gs://, az:// address, or a store that is open."""


def checked_path(path: str) -> list[str]:
    """The parts of a relative path; UnsafeObject if one of them could leave the cache or is not a plain name."""
    parts = path.split("/")
    for part in parts:
        if not _PART.fullmatch(part):
            raise UnsafeObject(f"{path!r} is not a valid object name of a cache; refused")
    return parts
