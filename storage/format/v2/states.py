"""Bits of hidden states <-> byte planes (docs/FORMAT.md, "Units of version 2": States).

The highest byte of the rotated bits is the exponent, in which neighbours are alike; the others are nearly noise. Apart, the
first compresses to 0.38 of its size and the rest costs no time.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXPONENT = {"bfloat16": (0xFF, 0xFF), "float16": (0xF8, 0xF8), "float32": (0xFF, 0xFF)}
"""dtype -> which bits of the highest byte are exponent, and what they are where a number is not finite."""
_ROWS = 64  # at a time: what is taken apart stays in the processor's cache


def split_states(states: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint16 or uint32 [P, D] -> uint8 [P, D] the highest bytes, uint8 [P, (B - 1) D] the others."""
    positions, width = states.shape
    size = states.dtype.itemsize
    high = np.empty((positions, width), dtype=np.uint8)
    low = np.empty((positions, size - 1, width), dtype=np.uint8)
    for start in range(0, positions, _ROWS):
        rows = states[start : start + _ROWS]
        planes = _bytes((rows << 1) | (rows >> (8 * size - 1)))
        high[start : start + _ROWS] = planes[:, :, size - 1]
        for plane in range(1, size):
            low[start : start + _ROWS, plane - 1] = planes[:, :, size - 1 - plane]
    return high, low.reshape(positions, (size - 1) * width)


def join_states(high: NDArray[np.uint8], low: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The states of `split_states`, in the dtype that holds their bits."""
    positions, width = high.shape
    size = dtype.itemsize
    states = np.empty((positions, width), dtype=dtype)
    planes = _bytes(states)
    parts = low.reshape(positions, size - 1, width)
    for start in range(0, positions, _ROWS):
        rows = slice(start, start + _ROWS)
        planes[rows, :, size - 1] = high[rows]
        for plane in range(1, size):
            planes[rows, :, size - 1 - plane] = parts[rows, plane - 1]
        block = states[rows]
        states[rows] = (block >> 1) | (block << (8 * size - 1))
    return states


def not_finite(high: NDArray[np.uint8], state_dtype: str) -> NDArray[np.bool_]:
    """[P] whether a number of a state is infinite or none, by the highest bytes."""
    mask, special = _EXPONENT[state_dtype]
    wrong: NDArray[np.bool_] = ((high & np.uint8(mask)) == special).any(axis=1)
    return wrong


def _bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """[P, D, B] the bytes of numbers, the lowest first: a view."""
    assert sys.byteorder == "little"
    view: NDArray[np.uint8] = numbers.view(np.uint8).reshape(*numbers.shape, numbers.dtype.itemsize)
    return view
