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
ESCAPE = 255  # a gap of 255 steps and more stands in `gap_escape`
MAX_STEPS = 2**31 - 1

AXES: dict[str, tuple[str, ...]] = {
    "keys": ("sample", "byte"),
    "samples": ("sample", "field"),
    "target": ("position",),
    "target_logprob": ("soft_position",),
    "tail": ("temperature", "soft_position"),
    "gap": ("rank", "soft_position"),
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


def encode_unit(samples: Sequence[SampleTargets], layout: Layout) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The attributes and arrays that store checked samples; equal samples give equal arrays."""
    targets = _concatenated([sample.targets for sample in samples], layout)
    soft = targets.soft
    ids, logprobs, target_ids = targets.ids[soft], targets.logprobs[soft], targets.target_ids[soft]
    keys = np.frombuffer(bytes.fromhex("".join(sample.key for sample in samples)), dtype=np.uint8)
    table = [(len(sample.targets), sample.hard) for sample in samples]
    target = targets.target_ids + np.uint32(layout.top_k)
    target[soft] = (ids == target_ids[:, None]).argmax(axis=1)
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
    logprobs = _decode_values(arrays["gap"], arrays["gap_escape"], attributes["value_step"])
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


def _concatenated(parts: Sequence[Targets], layout: Layout) -> Targets:
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
    """Differences of the rounded cumulative values, [K, Q]: rounding errors do not add up along a row."""
    steps_KQ = np.rint(np.maximum(-logprobs.T.astype(np.float64), 0.0) / VALUE_STEP).astype(np.int64)
    gaps_KQ = np.diff(steps_KQ, axis=0, prepend=0)
    escaped = gaps_KQ >= ESCAPE
    return np.minimum(gaps_KQ, ESCAPE).astype(np.uint8), gaps_KQ[escaped].astype(np.uint32)


def _decode_values(gap: NDArray[np.uint8], escapes: NDArray[np.uint32], step: float) -> NDArray[np.float32]:
    if int(escapes.sum(dtype=np.int64)) + ESCAPE * len(gap) > MAX_STEPS:
        raise DecodeError("gap_escape", "a log-probability lies below the range of the format")
    gaps_KQ = gap.astype(np.int32)
    escaped = gap == ESCAPE
    if np.count_nonzero(escaped) != len(escapes):
        raise DecodeError("gap_escape", "it has another length than the gaps ask for")
    gaps_KQ[escaped] = escapes
    np.cumsum(gaps_KQ, axis=0, out=gaps_KQ)
    return np.ascontiguousarray((gaps_KQ * np.float32(-step)).T)


def _encode_ids(ids: NDArray[np.uint32], vocabulary_size: int) -> tuple[int, dict[str, NDArray[Any]]]:
    """Ids as places in a dictionary of the unit: frequent words by one byte, the rest by bucket and place in it."""
    flat = ids.T.ravel()
    counts = np.bincount(flat, minlength=vocabulary_size)
    words = np.flatnonzero(counts)
    base = 256 if len(words) <= 2**16 else 2**16
    direct = min(256, (256 * base - len(words)) // (base - 1))
    by_count = words[np.argsort(-counts[words], kind="stable")]
    frequent, rest = np.sort(by_count[:direct]), by_count[direct:]
    # Words of about one frequency share a bucket; ascending ids inside make the dictionary compressible.
    octave = np.log2(counts[rest]).astype(np.int64)
    dictionary = np.concatenate([frequent, rest[np.lexsort((rest, -octave))]]).astype(np.uint32)
    rank_of = np.zeros(vocabulary_size, dtype=np.int64)
    rank_of[dictionary] = np.arange(len(dictionary))
    ranks = rank_of[flat]
    far = ranks - direct
    token = np.where(far < 0, ranks, direct + far // base).astype(np.uint8)
    extra = (far[far >= 0] % base).astype(np.uint8 if base == 256 else np.uint16)
    steps = np.diff(dictionary, prepend=np.uint32(0))  # wraps modulo 2^32
    return direct, {"id_token": token.reshape(ids.T.shape), "id_extra": extra, "id_dictionary": steps}


def _decode_ids(arrays: dict[str, NDArray[Any]], direct: int, layout: Layout) -> NDArray[np.uint32]:
    token, extra = arrays["id_token"], arrays["id_extra"]
    dictionary = np.cumsum(arrays["id_dictionary"], dtype=np.uint32)
    if dictionary.size and int(dictionary.max()) >= layout.vocabulary_size:
        raise DecodeError("id_dictionary", f"an id is not below {layout.vocabulary_size:,}")
    flat = token.ravel()
    far = np.flatnonzero(flat >= direct) if direct < 256 else np.empty(0, dtype=np.int64)
    if len(far) != len(extra):
        raise DecodeError("id_extra", "it has another length than the tokens ask for")
    base = 256 if extra.dtype == np.uint8 else 2**16
    ranks = (flat[far].astype(np.int64) - direct) * base + extra + direct
    near = np.zeros(256, dtype=np.uint32)
    near[: min(direct, len(dictionary))] = dictionary[:direct]
    highest = max(int(ranks.max(initial=-1)), int(flat[flat < direct].max(initial=0)) if flat.size else -1)
    if highest >= len(dictionary):
        raise DecodeError("id_token", "it points past the dictionary")
    out = near[flat]
    out[far] = dictionary[ranks]
    return np.ascontiguousarray(out.reshape(token.shape).T)


def _encode_tail(tail: NDArray[np.float32]) -> NDArray[np.uint16]:
    empty = np.isneginf(tail)
    codes = np.rint((TAIL_ORIGIN - np.where(empty, 0.0, tail.astype(np.float64))) / TAIL_STEP)
    return np.where(empty, TAIL_EMPTY, np.minimum(codes, TAIL_EMPTY - 1)).astype(np.uint16).T


def _decode_tail(codes: NDArray[np.uint16], origin: float, step: float) -> NDArray[np.float32]:
    values = np.float32(origin) - codes.astype(np.float32) * np.float32(step)
    values[codes == TAIL_EMPTY] = -np.inf
    return np.ascontiguousarray(values.T)


def _spread(rows: NDArray[Any], soft: NDArray[np.bool_]) -> NDArray[Any]:
    """The rows of soft positions at their places among all positions, zero elsewhere."""
    spread = np.zeros((len(soft), *rows.shape[1:]), dtype=rows.dtype)
    spread[soft] = rows
    return spread
