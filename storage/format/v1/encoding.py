"""Targets of one unit <-> the arrays that the format stores (docs/FORMAT.md, "Arrays").

Axis legend: S samples, P positions, Q soft positions (Q <= P), K stored entries, n node temperatures,
D distinct ids of the unit, E and G entries that need an extra or an escape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.spec import Layout
from storage.targets import SampleTargets, Targets

VALUE_STEP = 3 / 64  # nats; uniform rounding leaves a mean head KL of at most step^2 / 24 = 9.2e-5
TAIL_STEP = 1 / 128  # nats
TAIL_ORIGIN = 16.0  # nats; no tail of a vocabulary below e^16 lies above it
TAIL_EMPTY = 65535
ESCAPE = 15  # a gap of 15 steps and more stands in `gap_escape`
MAX_STEPS = 2**31 - 1
_LINES = 16  # ranks at a time: what belongs together stays in the processor's cache, and little is allocated

AXES: dict[str, tuple[str, ...]] = {
    "keys": ("sample", "byte"),
    "samples": ("sample", "field"),
    "target": ("position",),
    "target_logprob": ("soft_position",),
    "tail": ("temperature", "soft_position"),
    "gap": ("rank_pair", "soft_position"),
    "gap_escape": ("escape",),
    "id_token": ("rank", "soft_position"),
    "id_extra": ("extra",),
    "id_dictionary": ("word",),
}


class DecodeError(ValueError):
    """The arrays of a unit contradict each other; `array` names the one that is wrong."""

    def __init__(self, array: str, message: str) -> None:
        super().__init__(message)
        self.array = array


@dataclass(frozen=True, kw_only=True)
class DecodedUnit:
    """All samples of a unit, their positions one after the other."""

    keys: tuple[str, ...]
    offsets: NDArray[np.int64]
    """[S + 1] sample s has the positions offsets[s] to offsets[s + 1]."""
    hard: NDArray[np.bool_]
    """[S] whether the target ids are ground truth."""
    targets: Targets
    """Of all positions of the unit."""

    def sample(self, index: int) -> SampleTargets:
        """The targets of one sample, as views of the unit's arrays."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        whole = self.targets
        return SampleTargets(
            key=self.keys[index],
            hard=bool(self.hard[index]),
            targets=Targets(
                ids=whole.ids[rows],
                logprobs=whole.logprobs[rows],
                tail=whole.tail[rows],
                target_ids=whole.target_ids[rows],
                target_logprobs=whole.target_logprobs[rows],
                soft=whole.soft[rows],
            ),
        )

    def nbytes(self) -> int:
        """Memory of the decoded arrays, in bytes."""
        arrays = vars(self.targets).values()
        return int(sum(array.nbytes for array in arrays)) + self.offsets.nbytes + 160 * len(self.keys)


def encode_unit(
    samples: Sequence[SampleTargets], targets: Targets, layout: Layout
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The attributes and arrays that store checked samples; equal samples give equal arrays.

    `targets` are those of the samples one after the other.
    """
    soft = slice(None) if targets.soft.all() else targets.soft
    ids, logprobs, target_ids = targets.ids[soft], targets.logprobs[soft], targets.target_ids[soft]
    keys = np.frombuffer(bytes.fromhex("".join(sample.key for sample in samples)), dtype=np.uint8)
    table = [(len(sample.targets), sample.hard) for sample in samples]
    target = targets.target_ids + np.uint32(layout.top_k)
    target[soft] = np.equal(ids, target_ids[:, None]).argmax(axis=1)
    gap, gap_escape = _encode_values(logprobs)
    direct, words = _encode_ids(ids, layout.vocabulary_size)
    attributes: dict[str, Any] = {
        "direct": direct,
        "tail_origin": TAIL_ORIGIN,
        "tail_step": TAIL_STEP,
        "value_step": VALUE_STEP,
    }
    arrays: dict[str, NDArray[Any]] = {
        "keys": keys.reshape(-1, 32),
        "samples": np.array(table, dtype=np.uint32).reshape(-1, 2),
        "target": target,
        "target_logprob": targets.target_logprobs[soft].astype(np.float16),
        "tail": _encode_tail(targets.tail[soft]),
        "gap": gap,
        "gap_escape": gap_escape,
        **words,
    }
    return attributes, arrays


def decode_unit(attributes: dict[str, Any], arrays: dict[str, NDArray[Any]], layout: Layout) -> DecodedUnit:
    """The samples in the arrays of a unit; DecodeError naming the array that contradicts the others."""
    lengths = arrays["samples"][:, 0].astype(np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    stored = arrays["target"]
    if offsets[-1] != len(stored):
        raise DecodeError("samples", f"its samples have {offsets[-1]:,} positions, the unit has {len(stored):,}")
    if (arrays["samples"][:, 1] > 1).any():
        raise DecodeError("samples", "a flag is neither 0 nor 1")
    soft = stored < layout.top_k
    if np.count_nonzero(soft) != arrays["gap"].shape[1]:
        raise DecodeError("target", "it marks another number of soft positions than the unit has")
    ids = _decode_ids(arrays, int(attributes["direct"]), layout)
    logprobs = _decode_values(arrays["gap"], arrays["gap_escape"], attributes["value_step"], layout.top_k)
    tail = _decode_tail(arrays["tail"], attributes["tail_origin"], attributes["tail_step"])
    target_ids = stored - np.uint32(layout.top_k)
    target_ids[soft] = ids[np.arange(len(ids)), stored[soft]]
    if (target_ids >= layout.vocabulary_size).any():
        raise DecodeError("target", f"a target id is not below {layout.vocabulary_size:,}")
    target_logprobs = arrays["target_logprob"].astype(np.float32)
    if not soft.all():
        ids, logprobs, tail, target_logprobs = (_spread(rows, soft) for rows in (ids, logprobs, tail, target_logprobs))
    digits = arrays["keys"].tobytes().hex()
    return DecodedUnit(
        keys=tuple(digits[start : start + 64] for start in range(0, len(digits), 64)),
        offsets=offsets,
        hard=arrays["samples"][:, 1].astype(np.bool_),
        targets=Targets(
            ids=ids,
            logprobs=logprobs,
            tail=tail,
            target_ids=target_ids,
            target_logprobs=target_logprobs,
            soft=soft,
        ),
    )


def concatenated(parts: Sequence[Targets], layout: Layout) -> Targets:
    """The targets of several samples one after the other."""
    empty = Targets(
        ids=np.empty((0, layout.top_k), np.uint32),
        logprobs=np.empty((0, layout.top_k), np.float32),
        tail=np.empty((0, len(layout.temperatures)), np.float32),
        target_ids=np.empty(0, np.uint32),
        target_logprobs=np.empty(0, np.float32),
        soft=np.empty(0, np.bool_),
    )
    parts = [empty, *parts]
    return Targets(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(empty)})


def _encode_values(logprobs: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Differences of the rounded cumulative values: rounding errors do not add up along a row.

    Two ranks share a byte: neighbouring gaps tell of each other, and small ones need less than a bit each.
    """
    steps_KQ = np.rint(_transposed(logprobs) / np.float32(-VALUE_STEP)).astype(np.int32)
    gaps_KQ = np.maximum(steps_KQ, 0)  # a log-probability may exceed 0 by its rounding
    gaps_KQ[1:] -= gaps_KQ[:-1].copy()
    nibbles = np.zeros((len(gaps_KQ) + len(gaps_KQ) % 2, gaps_KQ.shape[1]), dtype=np.uint8)
    nibbles[: len(gaps_KQ)] = np.minimum(gaps_KQ, ESCAPE)
    pairs: NDArray[np.uint8] = np.bitwise_or(np.left_shift(nibbles[0::2], np.uint8(4)), nibbles[1::2])
    escapes = gaps_KQ.ravel().take(np.flatnonzero(nibbles[: len(gaps_KQ)] == ESCAPE))
    return pairs, escapes.astype(np.uint32)


def _decode_values(gap: NDArray[np.uint8], escapes: NDArray[np.uint32], step: float, top_k: int) -> NDArray[np.float32]:
    high, low = gap >> 4, gap & 15
    wanted = np.count_nonzero(high == ESCAPE) + np.count_nonzero(low[: top_k // 2] == ESCAPE)
    if wanted != len(escapes) or int(escapes.max(initial=0)) > MAX_STEPS:
        raise DecodeError("gap_escape", "it has another length than the gaps ask for, or a gap out of range")
    may_wrap = int(escapes.max(initial=0)) > MAX_STEPS // top_k - ESCAPE
    result = np.empty((gap.shape[1], top_k), dtype=np.float32)
    total = np.zeros(gap.shape[1], dtype=np.int32)
    used = 0
    for start in range(0, top_k, _LINES):
        pairs = slice(start // 2, (start + _LINES) // 2)
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
        result[:, start : start + _LINES] = (steps.astype(np.float32) * np.float32(-step)).T
    return result


def _encode_ids(ids: NDArray[np.uint32], vocabulary_size: int) -> tuple[int, dict[str, NDArray[Any]]]:
    """Ids as places in a dictionary of the unit: frequent words by one byte, the rest by bucket and place in it."""
    flat = _transposed(ids).ravel()
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


def _decode_ids(arrays: dict[str, NDArray[Any]], direct: int, layout: Layout) -> NDArray[np.uint32]:
    token, extra = arrays["id_token"], arrays["id_extra"]
    dictionary = np.cumsum(arrays["id_dictionary"], dtype=np.uint32)
    if dictionary.size and int(dictionary.max()) >= layout.vocabulary_size:
        raise DecodeError("id_dictionary", f"an id is not below {layout.vocabulary_size:,}")
    if np.count_nonzero(token >= direct) != len(extra):
        raise DecodeError("id_extra", "it has another length than the tokens ask for")
    if token.size and min(int(token.max()), direct - 1) >= len(dictionary):
        raise DecodeError("id_token", "it points past the dictionary")
    near = np.zeros(256, dtype=np.uint32)
    near[: min(direct, len(dictionary))] = dictionary[:direct]
    result = np.empty(token.shape[::-1], dtype=np.uint32)
    used = 0
    for start in range(0, len(token), _LINES):
        flat = token[start : start + _LINES].ravel()
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
        result[:, start : start + _LINES] = block.reshape(token[start : start + _LINES].shape).T
    return result


def _encode_tail(tail: NDArray[np.float32]) -> NDArray[np.uint16]:
    empty = np.isneginf(tail)
    codes = np.rint((TAIL_ORIGIN - np.where(empty, 0.0, tail.astype(np.float64))) / TAIL_STEP)
    codes = np.where(empty, TAIL_EMPTY, np.minimum(codes, TAIL_EMPTY - 1)).astype(np.uint16).T
    return np.diff(codes, axis=0, prepend=np.uint16(0))  # wraps modulo 2^16


def _decode_tail(differences: NDArray[np.uint16], origin: float, step: float) -> NDArray[np.float32]:
    codes = np.cumsum(differences, axis=0, dtype=np.uint16)
    values = np.float32(origin) - codes.astype(np.float32) * np.float32(step)
    values[codes == TAIL_EMPTY] = -np.inf
    return np.ascontiguousarray(values.T)


def _transposed(rows: NDArray[Any]) -> NDArray[Any]:
    """A contiguous transpose, a few lines of the short axis at a time: faster than numpy's own copy."""
    result = np.empty(rows.shape[::-1], dtype=rows.dtype)
    if len(rows) > len(result):
        for start in range(0, len(result), _LINES):
            result[start : start + _LINES] = rows[:, start : start + _LINES].T
    else:
        for start in range(0, len(rows), _LINES):
            result[:, start : start + _LINES] = rows[start : start + _LINES].T
    return result


def _spread(rows: NDArray[Any], soft: NDArray[np.bool_]) -> NDArray[Any]:
    """The rows of soft positions at their places among all positions, zero elsewhere."""
    spread = np.zeros((len(soft), *rows.shape[1:]), dtype=rows.dtype)
    spread[soft] = rows
    return spread
