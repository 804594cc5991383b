"""The index of sample keys: a local file derived from plans and manifests, so that a cache opens in O(1).

Pages of 4,096 bytes (docs/FORMAT.md, "Index"): a header, then rows sorted by key. Each page carries its number and a
crc32c and is checked when it is first touched, so a look-up reads and checks a handful of pages.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptIndex
from storage.keys import KEY, KEY_BYTES, as_rows, packed, repeated

INDEX = "index"
INDEX_NAME = "keys.bin"
SKIPPED = 2**32 - 1
PAGE = 4096
_MAGIC = b"FSINDEX1"
_ROW = struct.Struct("<32sIII")
_ROW_TYPE = np.dtype([("key", f"S{KEY_BYTES}"), ("plan", "<u4"), ("unit", "<u4"), ("sample", "<u4")])
_HEADER = struct.Struct("<8s32s32s32sQQQQ")
_FOOT = struct.Struct("<III")  # rows in the page, page number, crc32c of all before
_ROWS = (PAGE - _FOOT.size) // _ROW.size
_SETTLED_NS = 2 * 10**9  # a directory changed less than this before the index was built may change unnoticed


@dataclass(frozen=True)
class Entry:
    """Where a sample lies."""

    unit: str
    sample: int
    """Its number among the samples of the unit, or SKIPPED."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the index knows of the whole cache."""

    spec_digest: str
    state: str
    """Digest of the names of the committed units."""
    content: str
    """The digest of the cache."""
    changed: int
    """`Store.changed` of the manifests before they were read; 0 if unknown."""
    built: int
    """Time when it was built, nanoseconds since the epoch."""
    samples: int
    skipped: int

    def settled(self) -> bool:
        """Whether an equal `changed` number proves that no manifest was added or removed since."""
        return 0 < self.changed < self.built - _SETTLED_NS


def state_of(units: Iterable[str]) -> str:
    """The digest of a set of unit names."""
    return hashlib.sha256("\n".join(sorted(units)).encode()).hexdigest()


class IndexRows:
    """Where each sample lies, to be written as an index; about 60 bytes each."""

    def __init__(self) -> None:
        self._packed = bytearray()
        self._by_key: tuple[NDArray[np.void], NDArray[np.int64]] | None = None

    def add(self, unit: str, keys: Sequence[str], samples: Iterable[int]) -> None:
        """The samples of a unit: their keys, and their numbers in it or SKIPPED."""
        rows = np.empty(len(keys), dtype=_ROW_TYPE)
        rows["key"] = as_rows(packed(keys))
        rows["plan"], rows["unit"] = map(int, unit.split("-"))
        rows["sample"] = np.fromiter(samples, dtype=np.uint32, count=len(keys))
        self._packed += rows.tobytes()

    def by_key(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """All rows, and the order that sorts them by key. Of several rows with the same key, the order has the one added last.

        Computed once: no row is added afterwards.
        """
        if self._by_key is None:
            self._by_key = self._sorted()
        return self._by_key

    def counts(self) -> tuple[int, int]:
        """How many keys have targets, and how many are skipped."""
        rows, order = self.by_key()
        skipped = int(np.count_nonzero(rows["sample"][order] == SKIPPED))
        return len(order) - skipped, skipped

    def _sorted(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        rows = np.frombuffer(self._packed, dtype=_ROW_TYPE) if self._packed else np.empty(0, dtype=_ROW_TYPE)
        order = np.argsort(rows["key"], kind="stable")
        again = repeated(rows["key"], order)
        return rows, order[~np.append(again[1:], False)] if len(order) else order


def build_index(header: Header, rows: IndexRows) -> Iterator[bytes]:
    """The pages of an index file."""
    digests = [bytes.fromhex(digest) for digest in (header.spec_digest, header.state, header.content)]
    counts = (header.changed, header.built, header.samples, header.skipped)
    table, order = rows.by_key()
    yield _page(0, len(order), _HEADER.pack(_MAGIC, *digests, *counts))
    for number, start in enumerate(range(0, len(order), _ROWS), start=1):
        chosen = order[start : start + _ROWS]
        yield _page(number, len(chosen), table[chosen].tobytes())


def save_index(file: Path, pages: Iterable[bytes]) -> bool:
    """Put the index file in place at once; False where the directory cannot be written."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as out:
            out.writelines(pages)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True


class Index:
    """Looks keys up in the bytes of an index. CorruptIndex names the file and the page."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self._data = data
        self._where = where
        self._checked: set[int] = set()
        if len(data) < PAGE:
            raise self._corrupt(f"{len(data):,} bytes are too few")
        self._count = self._rows(0)
        magic, spec, state, content, changed, built, samples, skipped = _HEADER.unpack_from(data, 0)
        pages = 1 + -(-self._count // _ROWS)
        if magic != _MAGIC or len(data) != pages * PAGE:
            raise self._corrupt(f"its header says {pages:,} pages, the file has {len(data):,} bytes")
        self.header = Header(
            spec_digest=spec.hex(),
            state=state.hex(),
            content=content.hex(),
            changed=changed,
            built=built,
            samples=samples,
            skipped=skipped,
        )

    @classmethod
    def open(cls, file: Path) -> Index | None:
        """The index in a file, memory-mapped; None if there is none."""
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptIndex(
                f"{file}: {error.strerror}; delete it, and it will be rebuilt", object=str(file)
            ) from None
        try:
            if os.fstat(descriptor).st_size < PAGE:
                return cls(b"", str(file))
            return cls(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), str(file))
        finally:
            os.close(descriptor)

    def find(self, key: object) -> Entry | None:
        """Where a sample lies; None if the index does not have its key."""
        if not isinstance(key, str) or not KEY.fullmatch(key):
            return None
        wanted = bytes.fromhex(key)
        low, high = 1, len(self._data) // PAGE - 1
        if not high:
            return None
        while low < high:  # the last page whose first key is not above the wanted one
            middle = (low + high + 1) // 2
            self._rows(middle)
            low, high = (middle, high) if self._key(middle, 0) <= wanted else (low, middle - 1)
        rows = self._rows(low)
        row, end = 0, rows
        while row < end:  # the first row whose key is not below the wanted one
            middle = (row + end) // 2
            row, end = (middle + 1, end) if self._key(low, middle) < wanted else (row, middle)
        if row == rows:
            return None
        found, entry = self._entry(low, row)
        return entry if found == wanted else None

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All keys in ascending order, and where each lies."""
        for page in range(1, len(self._data) // PAGE):
            for row in range(self._rows(page)):
                key, entry = self._entry(page, row)
                yield key.hex(), entry

    def _key(self, page: int, row: int) -> bytes:
        start = page * PAGE + row * _ROW.size
        return self._data[start : start + 32]

    def _entry(self, page: int, row: int) -> tuple[bytes, Entry]:
        key, plan, unit, sample = _ROW.unpack_from(self._data, page * PAGE + row * _ROW.size)
        return key, Entry(f"{plan:06d}-{unit:06d}", sample)

    def _rows(self, page: int) -> int:
        """How many rows a page has, after checking it once."""
        start = page * PAGE
        rows, number, checksum = _FOOT.unpack_from(self._data, start + PAGE - _FOOT.size)
        if page not in self._checked:
            if google_crc32c.value(self._data[start : start + PAGE - 4]) != checksum or number != page:
                raise self._corrupt(f"page {page} does not match its crc32c")
            self._checked.add(page)
        return int(rows)

    def _corrupt(self, problem: str) -> CorruptIndex:
        return CorruptIndex(f"{self._where}: {problem}; delete the file, and it will be rebuilt", object=self._where)


def fresh_header(
    spec_digest: str, units: list[str], content: str, changed: int | None, samples: int, skipped: int
) -> Header:
    """The header of an index that is built now."""
    return Header(
        spec_digest=spec_digest,
        state=state_of(units),
        content=content,
        changed=changed or 0,
        built=time.time_ns(),
        samples=samples,
        skipped=skipped,
    )


def _page(number: int, rows: int, body: bytes) -> bytes:
    page = body.ljust(PAGE - _FOOT.size, b"\0") + struct.pack("<II", rows, number)
    return page + struct.pack("<I", google_crc32c.value(page))
