"""Reading a head: nothing is read before it is asked for, and nothing is believed before it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptObject, ObjectMissing, UnsafeObject
from storage.format.base import FormatVersion
from storage.format.chunks import ChunkError, decode_plain
from storage.format.head_table import BYTE_PIECE, NO_TOKEN
from storage.head.content import number_problem, unpack_tokens
from storage.head.document import GROUP, HeadDocument, read_head_document, sizes_of
from storage.store.base import Store


class Head:
    """The head of a cache; each object is checked against its sha256 and its crc32c when it is read.

    Raises, when it is made and by every method: ObjectMissing, CorruptObject naming the object.
    """

    def __init__(self, store: Store, version: FormatVersion) -> None:
        self._store = store
        self._sizes = sizes_of(version)
        self._document: HeadDocument = read_head_document(store, version)

    @property
    def digest(self) -> str:
        """The identity of the head: 64 hex digits."""
        return self._document.digest

    @property
    def scale(self) -> float:
        """What the logits are multiplied by."""
        return self._document.scale

    @property
    def softcap(self) -> float | None:
        """The cap c in c tanh(x / c), after the scale; None: no cap."""
        return self._document.softcap

    @property
    def nbytes(self) -> int:
        """Bytes of all its objects."""
        return sum(size for size, _ in self._document.objects.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return self._document.shapes[name]

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """An array 64 MiB at a time: number of the first row, rows. For arrays that must not be in memory twice."""
        shape = self.shape(name)
        self._check_metadata(f"{name}/zarr.json", self._sizes.document(name, shape))
        for path, part in self._sizes.chunks(name, shape).items():
            yield part[0].start, self._chunk(name, path)[: part[0].stop - part[0].start]

    def array(self, name: str) -> NDArray[Any]:
        """A whole array."""
        whole = np.empty(self.shape(name), dtype=self._sizes.dtypes[name])
        for start, rows in self.chunks(name):
            whole[start : start + len(rows)] = rows
        return whole

    def tokens(self) -> dict[int, tuple[bytes, int]]:
        """The teacher's token table, as `storage.head.content.TokenTable`. Kind exact."""
        arrays = {name: self.array(name) for name in ("token_length", "token_kind", "token_bytes")}
        known = arrays["token_length"] != NO_TOKEN
        if int(arrays["token_length"][known].sum(dtype=np.int64)) != len(arrays["token_bytes"]):
            raise self._corrupt("token_bytes/zarr.json", "its length is not the sum of token_length")
        if (arrays["token_kind"] > BYTE_PIECE).any():
            raise self._corrupt("token_kind/c.0", f"a kind is above {BYTE_PIECE}")
        return unpack_tokens(arrays)

    def verify(self) -> Iterator[CorruptObject]:
        """Read every object and report each that is wrong."""
        good = True
        for path in self._document.objects:
            name = path.rpartition("/")[0]
            try:
                if path.endswith("zarr.json"):
                    self._check_metadata(path, self._sizes.document(name, self.shape(name)) if name else GROUP)
                else:
                    self._chunk(name, path)
            except CorruptObject as error:
                good = False
                yield error
        if good and "token_length" in self._sizes.names():
            try:
                self.tokens()
            except CorruptObject as error:
                yield error

    def unlisted(self) -> set[str]:
        """The paths of objects below the head's prefix that its document does not list, except unfinished creations."""
        prefix = self._document.prefix
        found = {f"{prefix}/{path}" for path in self._store.tree(prefix).keys() - self._document.objects.keys()}
        return found - self._store.temporaries().keys()

    def _chunk(self, name: str, path: str) -> NDArray[Any]:
        try:
            chunk_shape = self._sizes.chunk_shape(name, self.shape(name))
            found = decode_plain(self._read(path), self._sizes.dtypes[name], chunk_shape)
        except ChunkError as error:
            raise self._corrupt(path, str(error)) from None
        if problem := number_problem(name, found):
            raise self._corrupt(path, problem)
        return found

    def _check_metadata(self, path: str, expected: bytes) -> None:
        if self._read(path) != expected:
            raise self._corrupt(path, "it is not the metadata that this format prescribes")

    def _read(self, path: str) -> bytes:
        size, sha256 = self._document.objects[path]
        try:
            data = self._store.read(f"{self._document.prefix}/{path}", limit=size)
        except (ObjectMissing, UnsafeObject) as error:
            raise self._corrupt(path, f"unreadable ({error})") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise self._corrupt(path, f"its size, {len(data):,} bytes, or its sha256 is not the one in head.json")
        return data

    @property
    def _advice(self) -> str:
        """What to do without a copy: the teacher makes the head of an exact cache again, and no one the directions of a tail."""
        if self._sizes.attempts:
            return (
                "train with loss.tail: bucket, which does without the tail's shape; for the shape dump to another cache path: "
                "another head would not be that of the units that are here"
            )
        return "remove the directory head and run fs-teacher dump again"

    def _corrupt(self, path: str, problem: str) -> CorruptObject:
        where = f"{self._document.prefix}/{path}"
        array = path.split("/")[0] if "/" in path else None
        return CorruptObject(
            f"{self._store.location}/{where}: {problem}; the head cannot be used: restore the object from a copy, or {self._advice}",
            object=where,
            array=array,
        )
