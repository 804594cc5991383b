"""Sample keys: 64 lower-case hex digits in the interface, 32 bytes in tables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets

KEY = re.compile(r"[0-9a-f]{64}")
KEY_BYTES = 32
_PART = 10_000  # keys at a time, where comparing copies them


def check_key(key: Any) -> str:
    """The key itself; InvalidTargets if it is not 64 lower-case hex digits."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InvalidTargets(f"a sample key is 64 lower-case hex digits, got {key!r}")
    return key


def draw_key(key: str, draw: int) -> str:
    """The key of one of several answers to a question: the sample's own for draw 0, a key of its own for each further draw."""
    check_key(key)
    if not 0 <= draw < 2**32:
        raise InvalidTargets(f"sample {key}: expected a draw from 0 to {2**32 - 1:,}, got {draw}")
    return hashlib.sha256(bytes.fromhex(key) + draw.to_bytes(4, "little")).hexdigest() if draw else key


def packed(keys: Iterable[str]) -> bytes:
    """Checked keys as bytes, 32 each, one after the other."""
    return bytes.fromhex("".join(keys))


def unpacked(data: bytes) -> tuple[str, ...]:
    """The keys in packed bytes."""
    digits = data.hex()
    return tuple(digits[start : start + 2 * KEY_BYTES] for start in range(0, len(digits), 2 * KEY_BYTES))


def as_rows(data: bytes | bytearray) -> NDArray[np.bytes_]:
    """[n] the keys in packed bytes as an array to sort and to search; it shares the bytes."""
    # all have 32 bytes, so that numpy's rule for shorter ones (zeros at the end do not count) changes no comparison
    return np.frombuffer(data, dtype=f"S{KEY_BYTES}") if data else np.empty(0, dtype=f"S{KEY_BYTES}")


def repeated(keys: NDArray[np.bytes_], order: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """[n] for each place in a sorted order of the keys: whether its key equals the one before it."""
    found = np.zeros(len(order), dtype=np.bool_)
    for start in range(1, len(order), _PART):
        here, before = order[start : start + _PART], order[start - 1 : start - 1 + _PART]
        found[start : start + _PART] = keys[here] == keys[before[: len(here)]]
    return found
