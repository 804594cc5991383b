"""A store in memory: what a store must do, without a disk or a service."""

from __future__ import annotations

import threading

from storage.errors import ObjectMissing, UnsafeObject
from storage.store.base import Store, checked_path


class MemoryStore(Store):
    """Objects in a dictionary; several threads may use it."""

    location = "memory://cache"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, path, *, limit):
        checked_path(path)
        if path not in self.objects:
            raise ObjectMissing(f"{self.location}/{path} not found")
        if len(self.objects[path]) > limit:
            raise UnsafeObject(
                f"{self.location}/{path} has {len(self.objects[path])} bytes, expected at most {limit}; refused"
            )
        return self.objects[path]

    def read_many(self, limits):
        return {path: self.read(path, limit=limit) for path, limit in limits.items()}

    def size(self, path):
        checked_path(path)
        return len(self.objects[path]) if path in self.objects else None

    def create(self, path, data):
        checked_path(path)
        with self._lock:
            return self.objects.setdefault(path, data) is data

    def write_tree(self, prefix, files):
        for path in files:
            checked_path(f"{prefix}/{path}")
        self.objects.update({f"{prefix}/{path}": data for path, data in files.items()})

    def names(self, prefix):
        return sorted({path.split("/")[0] for path in self.tree(prefix)})

    def tree(self, prefix):
        start = f"{prefix}/" if prefix else ""
        with self._lock:
            return {path[len(start) :]: len(data) for path, data in self.objects.items() if path.startswith(start)}

    def temporaries(self):
        return {}

    def changed(self, prefix):
        checked_path(prefix)

    def delete_tree(self, prefix):
        found = [prefix] if prefix in self.objects else [f"{prefix}/{path}" for path in self.tree(prefix)]
        return sum(len(self.objects.pop(path)) for path in found)

    def local_file(self, path):
        checked_path(path)
