"""What a head object holds, in memory, and the teacher's tokens as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.head_table import MAX_TOKEN_BYTES, NO_TOKEN, HeadSizes

TokenTable = Mapping[int, tuple[bytes, int]]
"""Teacher id -> bytes of the token, and what it is: TEXT_TOKEN, CONTROL_TOKEN or BYTE_PIECE."""


@dataclass(frozen=True, kw_only=True)
class HeadContent:
    """A head to write: logits = cap(scale * (weight h + bias)), cap(x) = softcap * tanh(x / softcap)."""

    arrays: Mapping[str, NDArray[Any]]
    """Those of the table in docs/FORMAT.md, by name; views are fine: they are copied 64 MiB at a time."""
    scale: float = 1.0
    softcap: float | None = None
    """None: no cap."""

    def checked(self, sizes: HeadSizes) -> None:
        """InvalidTargets where the content is not what the specification demands."""
        if set(self.arrays) != set(sizes.names()):
            raise InvalidTargets(f"head: expected the arrays {', '.join(sizes.names())}, got {', '.join(self.arrays)}")
        for name, array in self.arrays.items():
            shape = sizes.shape(name, len(array))
            if array.dtype != sizes.dtypes[name] or array.shape != shape:
                raise InvalidTargets(
                    f"head: {name} must be {sizes.dtypes[name]} of shape {shape}, got {array.dtype} {array.shape}"
                )
        if problem := scalar_problem(self.scale, self.softcap):
            raise InvalidTargets(f"head: {problem}")
        for name, array in self.arrays.items():
            if problem := number_problem(name, array):
                raise InvalidTargets(f"head: {name}: {problem}")
        if "token_length" in self.arrays:
            known = self.arrays["token_length"] != NO_TOKEN
            total = int(self.arrays["token_length"][known].sum(dtype=np.int64))
            if total != len(self.arrays["token_bytes"]) or total > MAX_TOKEN_BYTES:
                raise InvalidTargets(
                    f"head: token_bytes must have the sum of token_length, at most {MAX_TOKEN_BYTES:,}; "
                    f"got {len(self.arrays['token_bytes']):,} of {total:,}"
                )


def scalar_problem(scale: Any, softcap: Any) -> str | None:
    """What is wrong with scale and soft-cap, or None."""
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is None and name == "softcap":
            continue
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            return f"its {name} is {value!r}, expected a positive number"
    return None


def number_problem(name: str, array: NDArray[Any]) -> str | None:
    """What is wrong with the numbers of an array that holds floating-point numbers, not their bits; or None."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "a number is not finite"
    return "a number is not positive" if name == "scale" and not (array > 0).all() else None


def pack_tokens(tokens: TokenTable, rows: int) -> dict[str, NDArray[Any]]:
    """The arrays of a token table for a head of `rows` rows; InvalidTargets for an id that is not a row."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < rows:
        raise InvalidTargets(f"head: a token has an id that is not among the head's {rows:,} rows")
    length = np.full(rows, NO_TOKEN, dtype=np.uint32)
    kinds = np.zeros(rows, dtype=np.uint8)
    for index, (content, kind) in tokens.items():
        length[index], kinds[index] = len(content), kind
    joined = b"".join(tokens[index][0] for index in sorted(tokens))
    return {"token_length": length, "token_kind": kinds, "token_bytes": np.frombuffer(joined, dtype=np.uint8)}


def unpack_tokens(arrays: Mapping[str, NDArray[Any]]) -> dict[int, tuple[bytes, int]]:
    """The token table in checked arrays."""
    content, start = arrays["token_bytes"].tobytes(), 0
    tokens = {}
    for index in np.flatnonzero(arrays["token_length"] != NO_TOKEN).tolist():
        stop = start + int(arrays["token_length"][index])
        tokens[index] = (content[start:stop], int(arrays["token_kind"][index]))
        start = stop
    return tokens
