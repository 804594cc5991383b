"""The samples of a unit <-> its arrays `keys` and `samples`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.format.base import DecodeError
from storage.keys import packed, unpacked
from storage.targets import SampleTargets


def encode_samples(samples: Sequence[SampleTargets]) -> dict[str, NDArray[Any]]:
    """`keys` uint8 [S, 32]; `samples` uint32 [S, 2]: number of positions, whether these are ground truth."""
    keys = np.frombuffer(packed(sample.key for sample in samples), dtype=np.uint8)
    table = [(len(sample.targets), sample.hard) for sample in samples]
    return {"keys": keys.reshape(-1, 32), "samples": np.array(table, dtype=np.uint32).reshape(-1, 2)}


def decode_samples(
    arrays: Mapping[str, NDArray[Any]], positions: int
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.bool_]]:
    """Keys, int64 [S + 1] where each sample's positions begin and the last one's end, bool [S] whether ground truth.

    DecodeError if the samples do not have `positions` positions in all.
    """
    lengths = arrays["samples"][:, 0].astype(np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    if offsets[-1] != positions:
        raise DecodeError("samples", f"its samples have {offsets[-1]:,} positions, the unit has {positions:,}")
    if (arrays["samples"][:, 1] > 1).any():
        raise DecodeError("samples", "a flag is neither 0 nor 1")
    return unpacked(arrays["keys"].tobytes()), offsets, arrays["samples"][:, 1].astype(np.bool_)
