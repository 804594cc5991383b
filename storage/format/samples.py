"""The samples of a unit <-> its arrays `keys`, `samples` and, from version 2 on, `turns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.base import DecodeError, SampleRows
from storage.keys import packed, unpacked
from storage.targets import StoredSample
from storage.wording import counted


def one_turn(samples: Sequence[StoredSample]) -> None:
    """InvalidTargets naming the first sample of several turns, which version 1 does not store."""
    for sample in samples:
        if len(sample.turns) > 1:
            raise InvalidTargets(
                f"sample {sample.key}: it has {len(sample.turns)} turns, but format version 1 stores one answer per sample"
            )


def check_turns(sample: StoredSample) -> None:
    """InvalidTargets where the turns of a sample contradict its targets."""
    turns = sample.turns
    if not turns:
        return
    positions = sum(turn.positions for turn in turns)
    if positions != len(sample.targets) or any(turn.positions < (number > 0) for number, turn in enumerate(turns)):
        raise InvalidTargets(
            f"sample {sample.key}: its turns have {[turn.positions for turn in turns]} positions, its targets "
            f"{len(sample.targets)}; every turn after the first needs at least one"
        )
    if bool(sample.hard) != all(turn.hard for turn in turns):
        raise InvalidTargets(f"sample {sample.key}: `hard` is {sample.hard}, its turns say otherwise")


def encode_samples(samples: Sequence[StoredSample]) -> dict[str, NDArray[Any]]:
    """Version 1: `keys` uint8 [S, 32]; `samples` uint32 [S, 2]: number of positions, whether these are ground truth."""
    table = [(len(sample.targets), sample.hard) for sample in samples]
    return {"keys": _keys(samples), "samples": np.array(table, dtype=np.uint32).reshape(-1, 2)}


def encode_turns(samples: Sequence[StoredSample]) -> dict[str, NDArray[Any]]:
    """Version 2: `keys`; `samples` uint32 [S, 2]: positions, turns; `turns` uint32 [A, 2]: positions, ground truth."""
    table = [(len(sample.targets), len(sample.all_turns())) for sample in samples]
    turns = [turn for sample in samples for turn in sample.all_turns()]
    return {
        "keys": _keys(samples),
        "samples": np.array(table, dtype=np.uint32).reshape(-1, 2),
        "turns": np.array(turns, dtype=np.uint32).reshape(-1, 2),
    }


def decode_samples(arrays: Mapping[str, NDArray[Any]], positions: int) -> SampleRows:
    """The samples of a unit of version 1; DecodeError if they do not have `positions` positions in all."""
    offsets = _offsets(arrays["samples"][:, 0], positions)
    if (arrays["samples"][:, 1] > 1).any():
        raise DecodeError("samples", "a flag is neither 0 nor 1")
    return SampleRows(
        keys=unpacked(arrays["keys"].tobytes()),
        offsets=offsets,
        turns=arrays["samples"],
        turn_offsets=np.arange(len(offsets), dtype=np.int64),
    )


def decode_turns(arrays: Mapping[str, NDArray[Any]], positions: int) -> SampleRows:
    """The samples of a unit of version 2; DecodeError as `decode_samples`, and where turns and samples contradict each other."""
    samples, turns = arrays["samples"], arrays["turns"]
    offsets = _offsets(samples[:, 0], positions)
    turn_offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(samples[:, 1].astype(np.int64))])
    if turn_offsets[-1] != len(turns) or (samples[:, 1] == 0).any():
        raise DecodeError(
            "samples", f"its samples have {counted(turn_offsets[-1], 'turn')}, but the unit has {len(turns):,}"
        )
    if (turns[:, 1] > 1).any():
        raise DecodeError("turns", "a flag is neither 0 nor 1")
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(turns[:, 0].astype(np.int64))])
    if (ends[turn_offsets] != offsets).any():
        raise DecodeError("turns", "the positions of a sample's turns do not add up to those of the sample")
    first = np.zeros(len(turns), dtype=np.bool_)
    first[turn_offsets[:-1]] = True
    if (turns[~first, 0] == 0).any():
        raise DecodeError("turns", "a turn after the first has no position")
    return SampleRows(keys=unpacked(arrays["keys"].tobytes()), offsets=offsets, turns=turns, turn_offsets=turn_offsets)


def _keys(samples: Sequence[StoredSample]) -> NDArray[np.uint8]:
    return np.frombuffer(packed(sample.key for sample in samples), dtype=np.uint8).reshape(-1, 32)


def _offsets(lengths: NDArray[np.uint32], positions: int) -> NDArray[np.int64]:
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths.astype(np.int64))])
    if offsets[-1] != positions:
        raise DecodeError(
            "samples", f"its samples have {counted(offsets[-1], 'position')}, but the unit has {positions:,}"
        )
    return offsets
