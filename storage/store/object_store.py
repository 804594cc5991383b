"""A cache in an object store (s3://, gs://, az://) through obstore: the extra `[cloud]`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from storage.errors import CacheError, ObjectMissing, StoreError, UnsafeObject
from storage.failpoints import failpoint
from storage.store.base import Store, checked_path

_REQUESTS = 16


class ObjectStore(Store):
    """Objects below a prefix of a bucket. Credentials, region and endpoint come from the environment."""

    def __init__(self, location: str) -> None:
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError:
            raise StoreError(
                f"{location} needs the package obstore; install it with: pip install 'firstsight[cloud]'"
            ) from None
        self.location = location.rstrip("/")
        self._client: Any = obstore
        self._process = os.getpid()
        self._failures: Any = exceptions
        try:
            self._store: Any = store.from_url(self.location)
        except (exceptions.BaseError, ValueError) as error:
            raise StoreError(f"{location} cannot be opened: {_line(error)}") from None

    def _obstore(self) -> Any:
        """The client; StoreError in a forked process, where its runtime has no threads and every request would hang."""
        if os.getpid() != self._process:
            raise StoreError(
                f"{self.location} was opened before this process was forked, which its client does not support; "
                "start workers with the spawn method (multiprocessing_context='spawn'), or copy the cache to a "
                "local directory"
            )
        return self._client

    def read(self, path: str, *, limit: int) -> bytes:
        """The bytes of an object; see `Store.read`."""
        checked_path(path)
        with self._translated(path, "read"):
            result = self._obstore().get(self._store, path)
            size = int(result.meta["size"])
            if size > limit:
                raise UnsafeObject(f"{self.location}/{path} has {size:,} bytes, expected at most {limit:,}; refused")
            return bytes(result.bytes())

    def read_many(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The bytes of several objects, requested side by side; see `Store.read_many`."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = pool.map(lambda item: self.read(item[0], limit=item[1]), limits.items())
            return dict(zip(limits, found, strict=True))

    def size(self, path: str) -> int | None:
        """The size of an object in bytes, or None; see `Store.size`."""
        checked_path(path)
        try:
            with self._translated(path, "read"):
                return int(self._obstore().head(self._store, path)["size"])
        except ObjectMissing:
            return None

    def create(self, path: str, data: bytes) -> bool:
        """Put an object on the condition that it does not exist; see `Store.create`."""
        checked_path(path)
        failpoint("create:begin")
        with self._translated(path, "created"):
            try:
                self._obstore().put(self._store, path, data, mode="create", use_multipart=False)
            except self._failures.AlreadyExistsError:
                # A retried request says "exists" after its first try succeeded and the response was lost.
                return self.read(path, limit=2**31) == data
        return True

    def write_tree(self, prefix: str, files: Mapping[str, bytes]) -> None:
        """Put the objects under a fresh prefix, several at a time; see `Store.write_tree`."""

        def put(item: tuple[str, bytes]) -> None:
            path = f"{prefix}/{item[0]}"
            checked_path(path)
            with self._translated(path, "written"):
                self._obstore().put(self._store, path, item[1], use_multipart=False)

        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(put, files.items()))
        failpoint("tree:parent")

    def names(self, prefix: str) -> list[str]:
        """The names directly under a prefix; see `Store.names`."""
        with self._translated(prefix, "listed"):
            found = self._obstore().list_with_delimiter(self._store, prefix or None)
        objects = [str(item["path"]) for item in found["objects"]]
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in [*found["common_prefixes"], *objects])

    def tree(self, prefix: str) -> dict[str, int]:
        """All objects under a prefix and their sizes; see `Store.tree`."""
        cut = len(prefix) + 1 if prefix else 0
        with self._translated(prefix, "listed"):
            pages = self._obstore().list(self._store, prefix or None)
            return {str(item["path"])[cut:]: int(item["size"]) for page in pages for item in page}

    def temporaries(self) -> dict[str, tuple[int, float]]:
        """None: an object store has no partly created objects; see `Store.temporaries`."""
        return {}

    def changed(self, prefix: str) -> int | None:
        """None: a listing does not show it; see `Store.changed`."""
        checked_path(prefix)
        return None

    def delete_tree(self, prefix: str) -> int:
        """Remove the objects under a prefix, or the object itself; see `Store.delete_tree`."""
        found = self.tree(prefix)
        freed = sum(found.values()) or self.size(prefix) or 0
        with self._translated(prefix, "removed"):
            self._obstore().delete(self._store, [f"{prefix}/{path}" for path in found] or [prefix])
        return freed

    def local_file(self, path: str) -> Path | None:
        """None; see `Store.local_file`."""
        checked_path(path)
        return None

    @contextlib.contextmanager
    def _translated(self, path: str, done: str) -> Iterator[None]:
        """Turn what the client raises into one line that names the store."""
        where = f"{self.location}/{path}"
        try:
            yield
        except CacheError:
            raise
        except (self._failures.BaseError, OSError) as error:
            missing = isinstance(error, (FileNotFoundError, self._failures.NotFoundError))
            if missing and done == "read":
                raise ObjectMissing(f"{where} not found") from None
            raise StoreError(f"{where} cannot be {done}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    """The first line of an error of the client, which may print its whole request."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
