"""The chunks of a Zarr v3 array: its metadata document and its encoded bytes, within known bounds.

Every chunk goes through one of two codec chains, blosc or plain; both end in crc32c. Decoding here never trusts a length that the bytes
claim: the caller says how many bytes the chunk has, and anything else is an error.
`zarr` reads the same objects; this module exists because it checks before it allocates, and is faster.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from storage.canonical import canonical_json

# Item size -> level and block size. Single bytes gain from entropy tables of their own every 32 KiB, and nothing from
# a higher level; the small arrays of wider items compress best as a whole.
_BLOSC = {1: (1, 2**15), 2: (5, 0), 4: (5, 0)}
_DATA_TYPES = {
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "uint32": "<u4",
    "float16": "<f2",
    "float32": "<f4",
}


class ChunkError(ValueError):
    """The bytes of a chunk do not decode to the expected array; the caller says which object it is."""


def chunk_paths(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> dict[str, tuple[slice, ...]]:
    """The object name of each chunk of an array below the array's own path, and which part of the array it holds.

    The last chunk along an axis may be shorter: it is stored padded with zeros, as Zarr demands.
    """
    grid = [range(0, length, chunk) for length, chunk in zip(shape, chunk_shape, strict=True)]
    parts = {}
    for starts in itertools.product(*grid):
        name = ".".join(["c", *(str(start // chunk) for start, chunk in zip(starts, chunk_shape, strict=True))])
        stops = (start + chunk for start, chunk in zip(starts, chunk_shape, strict=True))
        parts[name] = tuple(slice(*edges) for edges in zip(starts, map(min, stops, shape), strict=True))
    return parts


def array_document(
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    compressed: bool = True,
) -> bytes:
    """The canonical Zarr v3 metadata of an array; `compressed` says which codec chain its chunks go through."""
    name = dtype.name
    return canonical_json(
        {
            "attributes": {},
            "chunk_grid": {
                "configuration": {"chunk_shape": list(chunk_shape)},
                "name": "regular",
            },
            "chunk_key_encoding": {"configuration": {"separator": "."}, "name": "default"},
            "codecs": _codecs(dtype, compressed),
            "data_type": name,
            "dimension_names": list(axes),
            "fill_value": 0.0 if dtype.kind == "f" else 0,
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
    """The array of known dtype and shape in a chunk's bytes; ChunkError before anything is allocated for a false length."""
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


def encode_plain(array: NDArray[Any]) -> bytes:
    """The array through the plain chain: little-endian bytes, crc32c. Equal arrays have equal bytes."""
    raw = np.ascontiguousarray(array, dtype=_DATA_TYPES[array.dtype.name]).tobytes()
    return raw + struct.pack("<I", google_crc32c.value(raw))


def decode_plain(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array in the bytes of a plain chunk, a view of them; ChunkError."""
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize + 4
    if len(data) != expected:
        raise ChunkError(f"the chunk has {len(data):,} bytes, expected {expected:,}")
    raw = data[:-4]
    if google_crc32c.value(raw) != struct.unpack("<I", data[-4:])[0]:
        raise ChunkError("the crc32c of the chunk does not match its bytes")
    array: NDArray[Any] = np.frombuffer(raw, dtype=_DATA_TYPES[dtype.name]).reshape(shape)
    return array


def encode_array(array: NDArray[Any], chunk_shape: tuple[int, ...]) -> dict[str, bytes]:
    """All chunks of an array, by their names below its path; none where it is empty."""
    encoded = {}
    for name, part in chunk_paths(array.shape, chunk_shape).items():
        chunk = array[part]
        if chunk.shape != chunk_shape:
            missing = [(0, whole - length) for whole, length in zip(chunk_shape, chunk.shape, strict=True)]
            chunk = np.pad(chunk, missing)
        encoded[name] = encode_chunk(chunk)
    return encoded


def join_chunks(
    chunks: Sequence[tuple[tuple[slice, ...], NDArray[Any]]], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """The array of chunks, each with the part that it holds (`chunk_paths`); the padding of the last ones is cut off."""
    if len(chunks) == 1 and chunks[0][1].shape == shape:
        return chunks[0][1]
    whole = np.empty(shape, dtype=dtype)
    for part, chunk in chunks:
        whole[part] = chunk[tuple(slice(edge.stop - edge.start) for edge in part)]
    return whole


def _codecs(dtype: np.dtype[Any], compressed: bool) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        first["configuration"] = {"endian": "little"}
    if not compressed:
        return [first, {"name": "crc32c"}]
    level, block = _BLOSC[dtype.itemsize]
    configuration = {
        "blocksize": block,
        "clevel": level,
        "cname": "zstd",
        "shuffle": "shuffle",
        "typesize": dtype.itemsize,
    }
    return [first, {"configuration": configuration, "name": "blosc"}, {"name": "crc32c"}]
