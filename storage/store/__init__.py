"""Where the bytes of a cache lie: one interface, local directories and object stores."""

from __future__ import annotations

from pathlib import Path

from storage.store.base import CLOUD_SCHEMES, Location, Store


def open_store(location: Location) -> Store:
    """The store at a local path or at an s3://, gs://, az:// address; a store that is open already, as it is."""
    if isinstance(location, Store):
        return location
    if isinstance(location, str) and location.startswith(CLOUD_SCHEMES):
        from storage.store.object_store import ObjectStore

        return ObjectStore(location)
    from storage.store.local import LocalStore

    return LocalStore(Path(location))
