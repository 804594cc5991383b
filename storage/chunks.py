"""One Zarr v3 array of a single chunk: its metadata document and its encoded bytes, within known bounds.

Every array of a unit has exactly one chunk and one of two codec chains, both ending in crc32c. Decoding here never
trusts a length that the bytes claim: the caller says how many bytes the array has, and anything else is an error.
`zarr` reads the same objects; this module exists because it checks before it allocates, and is faster.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from storage.canonical import canonical_json

ZSTD_LEVEL = 3
BLOSC_LEVEL = 5
_DATA_TYPES = {"uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "float16": "<f2"}


class ChunkError(ValueError):
    """The bytes of a chunk do not decode to the expected array; the caller adds the place."""


def chunk_name(shape: tuple[int, ...]) -> str:
    """The object name of the single chunk of an array with as many axes as `shape`."""
    return ".".join(["c", *["0"] * len(shape)])


def array_document(dtype: np.dtype[Any], shape: tuple[int, ...], axes: tuple[str, ...]) -> bytes:
    """The canonical Zarr v3 metadata of an array whose only chunk holds all of it."""
    name = dtype.name
    return canonical_json(
        {
            "attributes": {},
            "chunk_grid": {
                "configuration": {"chunk_shape": [max(1, length) for length in shape]},
                "name": "regular",
            },
            "chunk_key_encoding": {"configuration": {"separator": "."}, "name": "default"},
            "codecs": _codecs(dtype),
            "data_type": name,
            "dimension_names": list(axes),
            "fill_value": 0.0 if name == "float16" else 0,
            "node_type": "array",
            "shape": list(shape),
            "zarr_format": 3,
        }
    )


def encode_chunk(array: NDArray[Any]) -> bytes:
    """The array through its codec chain: little-endian bytes, zstd (blosc with byte shuffle if wider), crc32c."""
    raw = np.ascontiguousarray(array, dtype=_DATA_TYPES[array.dtype.name])
    packed = _zstd(raw) if raw.dtype.itemsize == 1 else _blosc(raw)
    return packed + struct.pack("<I", google_crc32c.value(packed))


def decode_chunk(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of known dtype and shape in a chunk's bytes; ChunkError before anything is allocated for a lie."""
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) < 5:
        raise ChunkError(f"{len(data)} bytes are no chunk")
    packed, checksum = data[:-4], struct.unpack("<I", data[-4:])[0]
    if google_crc32c.value(packed) != checksum:
        raise ChunkError("the crc32c of the chunk does not match its bytes")
    out = np.empty(shape, dtype=_DATA_TYPES[dtype.name])
    claimed = _zstd_length(packed) if dtype.itemsize == 1 else _blosc_length(packed)
    if claimed != expected:
        raise ChunkError(f"the chunk claims {claimed:,} bytes, the array has {expected:,}")
    try:
        (zstd if dtype.itemsize == 1 else blosc).decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"the chunk does not decompress: {error}") from None
    return out


def _zstd(raw: NDArray[Any]) -> bytes:
    return bytes(zstd.compress(raw, ZSTD_LEVEL))


def _blosc(raw: NDArray[Any]) -> bytes:
    return bytes(blosc.compress(raw, b"zstd", BLOSC_LEVEL, blosc.SHUFFLE, 0))


def _codecs(dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    crc32c = {"name": "crc32c"}
    if dtype.itemsize == 1:
        return [
            {"name": "bytes"},
            {"configuration": {"checksum": False, "level": ZSTD_LEVEL}, "name": "zstd"},
            crc32c,
        ]
    configuration = {
        "blocksize": 0,
        "clevel": BLOSC_LEVEL,
        "cname": "zstd",
        "shuffle": "shuffle",
        "typesize": dtype.itemsize,
    }
    return [
        {"configuration": {"endian": "little"}, "name": "bytes"},
        {"configuration": configuration, "name": "blosc"},
        crc32c,
    ]


def _blosc_length(packed: bytes) -> int:
    """Bytes 4 to 8 of a Blosc frame: the length of its content."""
    return int(struct.unpack("<I", packed[4:8])[0]) if len(packed) >= 16 else -1


def _zstd_length(packed: bytes) -> int:
    """The content size that a zstd frame header declares (RFC 8878, section 3.1.1.1); -1 if none."""
    if len(packed) < 6 or packed[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = packed[4]
    flag, single_segment = descriptor >> 6, descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[flag]
    if width == 0 or len(packed) < start + width:
        return -1
    return int.from_bytes(packed[start : start + width], "little") + (256 if width == 2 else 0)
