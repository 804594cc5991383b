"""Student ids <-> places in a dictionary of the unit (docs/FORMAT.md, "Units")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.format.base import DecodeError
from storage.format.v1.ranks import LINES, transposed


def encode_ids(ids: NDArray[np.uint32], vocabulary_size: int) -> tuple[int, dict[str, NDArray[Any]]]:
    """Ids as places in a dictionary of the unit: frequent words by one byte, the rest by bucket and place in it."""
    flat = transposed(ids).ravel()
    counts = np.bincount(flat, minlength=vocabulary_size)
    words = np.flatnonzero(counts)
    width = 8 if len(words) <= 2**16 else 16  # bits of the place in a bucket
    direct = min(256, (2 ** (8 + width) - len(words)) // (2**width - 1))
    by_count = words[np.argsort(-counts[words], kind="stable")]
    frequent, rest = np.sort(by_count[:direct]), by_count[direct:]
    # Words of about one frequency share a bucket; ascending ids inside make the dictionary compressible.
    octave = np.log2(counts[rest]).astype(np.int64)
    dictionary = np.concatenate([frequent, rest[np.lexsort((rest, -octave))]]).astype(np.uint32)
    far = np.maximum(np.arange(len(dictionary)) - direct, 0)
    tokens = np.where(np.arange(len(dictionary)) < direct, np.arange(len(dictionary)), direct + (far >> width))
    token_of = np.zeros(vocabulary_size, dtype=np.uint8)
    token_of[dictionary] = tokens
    extra_of = np.zeros(vocabulary_size, dtype=np.uint8 if width == 8 else np.uint16)
    extra_of[dictionary] = far & (2**width - 1)
    token = token_of.take(flat)
    escaped = np.flatnonzero(token >= direct) if direct < 256 else np.empty(0, dtype=np.int64)
    extra = extra_of.take(flat.take(escaped))
    steps = np.diff(dictionary, prepend=np.uint32(0))  # wraps modulo 2^32
    return direct, {"id_token": token.reshape(ids.T.shape), "id_extra": extra, "id_dictionary": steps}


def decode_ids(arrays: Mapping[str, NDArray[Any]], direct: int, vocabulary_size: int) -> NDArray[np.uint32]:
    """uint32 [Q, K]; DecodeError names the array that points past another."""
    token, extra = arrays["id_token"], arrays["id_extra"]
    dictionary = np.cumsum(arrays["id_dictionary"], dtype=np.uint32)
    if dictionary.size and int(dictionary.max()) >= vocabulary_size:
        raise DecodeError("id_dictionary", f"an id is not below {vocabulary_size:,}")
    if np.count_nonzero(token >= direct) != len(extra):
        raise DecodeError("id_extra", "its length does not match the tokens")
    if token.size and min(int(token.max()), direct - 1) >= len(dictionary):
        raise DecodeError("id_token", "it points past the dictionary")
    near = np.zeros(256, dtype=np.uint32)
    near[: min(direct, len(dictionary))] = dictionary[:direct]
    result = np.empty(token.shape[::-1], dtype=np.uint32)
    used = 0
    for start in range(0, len(token), LINES):
        flat = token[start : start + LINES].ravel()
        block = near.take(flat)
        escaped = np.flatnonzero(flat >= direct)
        places = flat.take(escaped).astype(np.int32) - direct
        places <<= 8 * extra.dtype.itemsize
        places += extra[used : used + len(places)]
        places += direct
        used += len(places)
        if places.size and int(places.max()) >= len(dictionary):
            raise DecodeError("id_token", "it points past the dictionary")
        block[escaped] = dictionary.take(places)
        result[:, start : start + LINES] = block.reshape(token[start : start + LINES].shape).T
    return result
