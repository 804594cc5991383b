"""Decoded units in a local scratch directory, memory-mapped: one decoding serves all workers and epochs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptIndex, StoreError
from storage.format.base import SAMPLE_ARRAYS, DecodedUnit
from storage.targets import Targets
from storage.units.manifest import Manifest


def map_unit(scratch: Path, manifest: Manifest, kind: type[Targets], load: Callable[[], DecodedUnit]) -> DecodedUnit:
    """The decoded unit of a manifest, mapped from `scratch`; `load` decodes it if it was not found there.

    A file belongs to the content digest of its unit. It is checked against its crc32c when it is mapped. `kind` is the
    class of the unit's targets.
    """
    file = scratch / f"{manifest.content_digest}.2.unit"  # 2: of what is in such files
    if not file.exists():
        unit = load()
        make_scratch(scratch)
        with _translated(scratch):
            _save(file, unit)
    with _translated(scratch):
        return _open(file, kind)


def keep_states(
    scratch: Path | None, name: str, dtype: np.dtype[Any], width: int, load: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """The states of a chunk from `scratch`; `load` decodes them if they were not found there, or if there is no scratch.

    A file is checked against its crc32c when it is read.
    """
    if scratch is None:
        return load()
    file = scratch / f"{name}.states"
    if not file.exists():
        states = load()
        make_scratch(scratch)
        with _translated(scratch):
            raw = states.tobytes()
            _replace(file, raw + struct.pack("<I", google_crc32c.value(raw)))
        return states
    with _translated(scratch):
        data = file.read_bytes()
    if len(data) < 4 or google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise CorruptIndex(f"{file}: its crc32c does not match; delete it, and it will be made again", object=str(file))
    return np.frombuffer(data[:-4], dtype=dtype).reshape(-1, width)


def make_scratch(scratch: Path) -> None:
    """Create the directory if it does not exist. StoreError."""
    with _translated(scratch):
        scratch.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _translated(scratch: Path) -> Iterator[None]:
    """Turn what the operating system raises into one line with the directory and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"no space left in the scratch directory {scratch}; free some, or choose another"
            ) from None
        raise StoreError(f"scratch directory {scratch}: {error.strerror or error}; choose another") from None


def _save(file: Path, unit: DecodedUnit) -> None:
    arrays = unit.arrays()
    table: dict[str, Any] = {}
    start = 0
    for name, array in arrays.items():
        table[name] = [array.dtype.str, list(array.shape), start]
        start += -(-array.nbytes // 64) * 64
    body = bytearray(start)
    for name, array in arrays.items():
        at = table[name][2]
        body[at : at + array.nbytes] = np.ascontiguousarray(array).tobytes()
    head = json.dumps({"keys": unit.keys, "arrays": table, "bytes": start}).encode()
    head += b" " * (-(len(head) + 12) % 64)
    checksum = google_crc32c.extend(google_crc32c.value(head), bytes(body))
    _replace(file, struct.pack("<QI", len(head), checksum) + head + body)


def _replace(file: Path, data: bytes) -> None:
    """Put a file in place at once."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _open(file: Path, kind: type[Targets]) -> DecodedUnit:
    data = file.read_bytes()
    try:
        length, checksum = struct.unpack("<QI", data[:12])
        if google_crc32c.value(data[12:]) != checksum:
            raise ValueError("its crc32c does not match")
        head = json.loads(data[12 : 12 + length])
    except (ValueError, struct.error) as error:
        raise CorruptIndex(f"{file}: {error}; delete it, and it will be made again", object=str(file)) from None
    if {*SAMPLE_ARRAYS, *kind.names()} != set(head["arrays"]):
        raise CorruptIndex(
            f"{file}: another version of this program made it; delete it, and it will be made again", object=str(file)
        )
    start = 12 + length
    raw: NDArray[np.uint8] = np.memmap(file, dtype=np.uint8, mode="r")

    def array(name: str) -> NDArray[Any]:
        dtype, shape, at = head["arrays"][name]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        view: NDArray[Any] = raw[start + at : start + at + size].view(dtype).reshape(shape)
        return view

    return DecodedUnit.from_arrays(head["keys"], {name: array(name) for name in head["arrays"]}, kind)
