"""The arrays of a head object (docs/FORMAT.md, "Head of a cache"), and the sizes that a specification demands of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.format.chunks import array_document, chunk_paths

CHUNK_BYTES = 64 * 2**20
MAX_TOKEN_BYTES = CHUNK_BYTES
NO_TOKEN = 2**32 - 1
"""A row of the head that is no token, in `token_length`."""
TEXT_TOKEN, CONTROL_TOKEN, BYTE_PIECE = range(3)
"""What a token is, in `token_kind`; a byte piece spells its byte only where an encoder has no text token for it."""
BITS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.uint16),
    "float32": np.dtype(np.uint32),
}
"""The dtype that holds the bits of a number of each dtype of a model."""


@dataclass(frozen=True)
class HeadArray:
    """One array of a head object."""

    name: str
    dtypes: tuple[str, ...]
    axes: tuple[tuple[str, str], ...]
    """(dimension name, length as docs/FORMAT.md writes it); empty where the length is the head's own."""
    meaning: str


EXACT_ARRAYS = (
    HeadArray(
        "weight",
        ("uint16", "uint32"),
        (("token", "H"), ("dimension", "D")),
        "the bits of the head's rows, by teacher id",
    ),
    HeadArray(
        "bias",
        ("uint16", "uint32"),
        (("token", "H"),),
        "the bits of its bias; absent where `head.bias` is false",
    ),
    HeadArray("token_length", ("uint32",), (("token", "H"),), "bytes of the token; 2^32 - 1: the row is no token"),
    HeadArray(
        "token_kind",
        ("uint8",),
        (("token", "H"),),
        "0: text; 1: a control token; 2: a byte-fallback piece, which stands for a byte that has no token of kind 0",
    ),
    HeadArray("token_bytes", ("uint8",), (("byte", ""),), "the bytes of all tokens, one after the other"),
)
TAIL_ARRAYS = (
    HeadArray(
        "image",
        ("float16",),
        (("token", "V"), ("direction", "r")),
        "what each direction adds to the logit, by student id; 0 where not shared",
    ),
    HeadArray(
        "mean",
        ("float32",),
        (("token", "V"),),
        "the logit of the mean state, by student id; 0 where not shared",
    ),
    HeadArray("scale", ("float32",), (("direction", "r"),), "the unit of the coefficients, positive"),
    HeadArray(
        "basis",
        ("float32",),
        (("direction", "r"), ("dimension", "D")),
        "the directions: coefficients times scale are `basis` (state - `center`)",
    ),
    HeadArray("center", ("float32",), (("dimension", "D"),), "the mean state"),
)


@dataclass(frozen=True)
class HeadSizes:
    """What the specification of a cache demands of its head object."""

    arrays: tuple[HeadArray, ...]
    dtypes: Mapping[str, np.dtype[Any]]
    """The dtype of every array that this head has."""
    lengths: Mapping[str, int]
    """Symbol of an axis -> its length."""
    attempts: bool
    """Whether it is written below an attempt: its content is not determined by the teacher alone."""

    def names(self) -> tuple[str, ...]:
        """The arrays of this head, in the order of the table."""
        return tuple(array.name for array in self.arrays if array.name in self.dtypes)

    def shape(self, name: str, own: int) -> tuple[int, ...]:
        """The shape of an array; `own` is the length of an axis that the specification does not give."""
        return tuple(self.lengths[symbol] if symbol else own for _, symbol in self._array(name).axes)

    def chunk_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the chunks of an array: the fewest that keep to CHUNK_BYTES, and of these the least rows."""
        row = self.dtypes[name].itemsize * int(np.prod(shape[1:], dtype=np.int64))
        chunks = -(-max(1, shape[0]) // max(1, CHUNK_BYTES // max(1, row)))
        return (-(-max(1, shape[0]) // chunks), *(max(1, length) for length in shape[1:]))

    def document(self, name: str, shape: tuple[int, ...]) -> bytes:
        """The Zarr metadata of an array."""
        axes = tuple(axis for axis, _ in self._array(name).axes)
        return array_document(self.dtypes[name], shape, self.chunk_shape(name, shape), axes, compressed=False)

    def chunks(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[slice, ...]]:
        """The chunk objects of an array, path below the head's prefix -> which part of the array it holds."""
        found = chunk_paths(shape, self.chunk_shape(name, shape))
        return {f"{name}/{path}": part for path, part in found.items()}

    def chunk_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """The size of every chunk object of an array."""
        return self.dtypes[name].itemsize * int(np.prod(self.chunk_shape(name, shape), dtype=np.int64)) + 4

    def padded(self, name: str, shape: tuple[int, ...], part: NDArray[Any]) -> NDArray[Any]:
        """A part of an array as a whole chunk: the last one is padded with zeros."""
        missing = self.chunk_shape(name, shape)[0] - len(part)
        return np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)]) if missing else part

    def nbytes(self) -> int:
        """Bytes of all arrays but `token_bytes`."""
        shapes = {name: self.shape(name, 0) for name in self.names()}
        return sum(self.dtypes[name].itemsize * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items())

    def _array(self, name: str) -> HeadArray:
        return next(array for array in self.arrays if array.name == name)


def exact_sizes(rows: int, hidden_size: int, dtype: str, bias: bool) -> HeadSizes:
    """The head of a cache of kind exact."""
    dtypes: dict[str, np.dtype[Any]] = {
        "weight": BITS[dtype],
        "bias": BITS[dtype],
        "token_length": np.dtype(np.uint32),
        "token_kind": np.dtype(np.uint8),
        "token_bytes": np.dtype(np.uint8),
    }
    if not bias:
        del dtypes["bias"]
    return HeadSizes(EXACT_ARRAYS, dtypes, {"H": rows, "D": hidden_size}, attempts=False)


def tail_sizes(rows: int, rank: int, hidden_size: int) -> HeadSizes:
    """The head of a cache of kind top_k with a tail rank."""
    dtypes = {array.name: np.dtype(array.dtypes[0]) for array in TAIL_ARRAYS}
    return HeadSizes(TAIL_ARRAYS, dtypes, {"V": rows, "r": rank, "D": hidden_size}, attempts=True)
