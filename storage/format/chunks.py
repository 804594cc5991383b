"""One Zarr v3 array of a single chunk: its metadata document and its encoded bytes, within known bounds.

Every array of a unit has exactly one chunk and one codec chain, which ends in crc32c. Decoding here never
trusts a length that the bytes claim: the caller says how many bytes the array has, and anything else is an error.
`zarr` reads the same objects; this module exists because it checks before it allocates, and is faster.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from storage.canonical import canonical_json

# Item size -> level and block size. Single bytes gain from entropy tables of their own every 32 KiB, and nothing from
# a higher level; the small arrays of wider items compress best as a whole.
_BLOSC = {1: (1, 2**15), 2: (5, 0), 4: (5, 0)}
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
    """The array through its codec chain: little-endian bytes, blosc (zstd, byte shuffle), crc32c."""
    raw = np.ascontiguousarray(array, dtype=_DATA_TYPES[array.dtype.name])
    level, block = _BLOSC[raw.dtype.itemsize]
    packed = bytes(blosc.compress(raw, b"zstd", level, blosc.SHUFFLE, block))
    return packed + struct.pack("<I", google_crc32c.value(packed))


def decode_chunk(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of known dtype and shape in a chunk's bytes; ChunkError before anything is allocated for a lie."""
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    packed = data[:-4]
    if len(packed) < 16 or google_crc32c.value(packed) != struct.unpack("<I", data[-4:])[0]:
        raise ChunkError("the crc32c of the chunk does not match its bytes")
    (claimed,) = struct.unpack("<I", packed[4:8])  # of a Blosc frame: the length of its content
    if claimed != expected:
        raise ChunkError(f"the chunk claims {claimed:,} bytes, the array has {expected:,}")
    out = np.empty(shape, dtype=_DATA_TYPES[dtype.name])
    try:
        blosc.decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"the chunk does not decompress: {error}") from None
    return out


def _codecs(dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    level, block = _BLOSC[dtype.itemsize]
    configuration = {
        "blocksize": block,
        "clevel": level,
        "cname": "zstd",
        "shuffle": "shuffle",
        "typesize": dtype.itemsize,
    }
    first: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        first["configuration"] = {"endian": "little"}
    return [first, {"configuration": configuration, "name": "blosc"}, {"name": "crc32c"}]
