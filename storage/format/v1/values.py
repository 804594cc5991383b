"""Log-probabilities and tails <-> the whole numbers that format version 1 stores (docs/FORMAT.md, "Units").

Axis legend: Q soft positions, K stored entries, n node temperatures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.format.base import DecodeError
from storage.format.v1.arrays import TAIL_ORIGIN, TAIL_STEP, VALUE_STEP
from storage.format.v1.ranks import LINES, transposed

TAIL_EMPTY = 65535
ESCAPE = 15  # a gap of 15 steps or more is stored in `gap_escape`
MAX_STEPS = 2**31 - 1


def encode_values(logprobs: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Differences of the rounded cumulative values: rounding errors do not add up along a row.

    Two ranks share a byte: neighbouring gaps are alike, and small ones need less than a bit each.
    """
    steps_KQ = np.rint(transposed(logprobs) / np.float32(-VALUE_STEP)).astype(np.int32)
    gaps_KQ = np.maximum(steps_KQ, 0)  # a log-probability may exceed 0 by its rounding
    gaps_KQ[1:] -= gaps_KQ[:-1].copy()
    nibbles = np.zeros((len(gaps_KQ) + len(gaps_KQ) % 2, gaps_KQ.shape[1]), dtype=np.uint8)
    nibbles[: len(gaps_KQ)] = np.minimum(gaps_KQ, ESCAPE)
    pairs: NDArray[np.uint8] = np.bitwise_or(np.left_shift(nibbles[0::2], np.uint8(4)), nibbles[1::2])
    escapes = gaps_KQ.ravel().take(np.flatnonzero(nibbles[: len(gaps_KQ)] == ESCAPE))
    return pairs, escapes.astype(np.uint32)


def decode_values(gap: NDArray[np.uint8], escapes: NDArray[np.uint32], step: float, top_k: int) -> NDArray[np.float32]:
    high, low = gap >> 4, gap & 15
    wanted = np.count_nonzero(high == ESCAPE) + np.count_nonzero(low[: top_k // 2] == ESCAPE)
    if wanted != len(escapes) or int(escapes.max(initial=0)) > MAX_STEPS:
        raise DecodeError("gap_escape", "its length does not match the gaps, or a gap is out of range")
    may_wrap = int(escapes.max(initial=0)) > MAX_STEPS // top_k - ESCAPE
    result = np.empty((gap.shape[1], top_k), dtype=np.float32)
    total = np.zeros(gap.shape[1], dtype=np.int32)
    used = 0
    for start in range(0, top_k, LINES):
        pairs = slice(start // 2, (start + LINES) // 2)
        steps = (
            np.stack([high[pairs], low[pairs]], axis=1)
            .reshape(2 * len(high[pairs]), gap.shape[1])[: top_k - start]
            .astype(np.int32)
        )
        escaped = np.flatnonzero(steps == ESCAPE)
        steps.ravel()[escaped] = escapes[used : used + len(escaped)]
        used += len(escaped)
        for line in steps:  # np.cumsum along this axis takes twenty times as long
            line += total
            total = line
        if may_wrap and (steps < 0).any():
            raise DecodeError("gap_escape", "a log-probability lies below the range of the format")
        result[:, start : start + LINES] = (steps.astype(np.float32) * np.float32(-step)).T
    return result


def encode_tail(tail: NDArray[np.float32]) -> NDArray[np.uint16]:
    empty = np.isneginf(tail)
    codes = np.rint((TAIL_ORIGIN - np.where(empty, 0.0, tail.astype(np.float64))) / TAIL_STEP)
    codes = np.where(empty, TAIL_EMPTY, np.minimum(codes, TAIL_EMPTY - 1)).astype(np.uint16).T
    return np.diff(codes, axis=0, prepend=np.uint16(0))  # wraps modulo 2^16


def decode_tail(differences: NDArray[np.uint16], origin: float, step: float) -> NDArray[np.float32]:
    codes = np.cumsum(differences, axis=0, dtype=np.uint16)
    values = np.float32(origin) - codes.astype(np.float32) * np.float32(step)
    values[codes == TAIL_EMPTY] = -np.inf
    return np.ascontiguousarray(values.T)
