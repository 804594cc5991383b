"""Targets of the positions of one unit <-> the arrays of format version 1 (docs/FORMAT.md, "Units").

Axis legend: S samples, P positions, Q soft positions (Q <= P), K stored entries, n node temperatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.format.base import DecodeError
from storage.format.layout import Layout
from storage.format.v1.arrays import TAIL_ORIGIN, TAIL_STEP, VALUE_STEP
from storage.format.v1.ids import decode_ids, encode_ids
from storage.format.v1.values import decode_tail, decode_values, encode_tail, encode_values
from storage.targets import Targets


def encode_targets(targets: Targets, layout: Layout) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The attributes and arrays that store checked targets of a unit; equal targets give equal arrays."""
    soft = slice(None) if targets.soft.all() else targets.soft
    ids, logprobs, target_ids = targets.ids[soft], targets.logprobs[soft], targets.target_ids[soft]
    target = targets.target_ids + np.uint32(layout.top_k)
    target[soft] = np.equal(ids, target_ids[:, None]).argmax(axis=1)
    gap, gap_escape = encode_values(logprobs)
    direct, words = encode_ids(ids, layout.vocabulary_size)
    attributes: dict[str, Any] = {
        "direct": direct,
        "tail_origin": TAIL_ORIGIN,
        "tail_step": TAIL_STEP,
        "value_step": VALUE_STEP,
    }
    arrays: dict[str, NDArray[Any]] = {
        "target": target,
        "target_logprob": targets.target_logprobs[soft].astype(np.float16),
        "tail": encode_tail(targets.tail[soft]),
        "gap": gap,
        "gap_escape": gap_escape,
        **words,
    }
    return attributes, arrays


def decode_targets(attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], layout: Layout) -> Targets:
    """The targets in the arrays of a unit; DecodeError naming the array that contradicts the others."""
    stored = arrays["target"]
    soft = stored < layout.top_k
    if np.count_nonzero(soft) != arrays["gap"].shape[1]:
        raise DecodeError("target", "its number of soft positions is not the one of the unit")
    ids = decode_ids(arrays, int(attributes["direct"]), layout.vocabulary_size)
    logprobs = decode_values(arrays["gap"], arrays["gap_escape"], attributes["value_step"], layout.top_k)
    tail = decode_tail(arrays["tail"], attributes["tail_origin"], attributes["tail_step"])
    own_ids = ids[np.arange(len(ids)), stored[soft]]
    target_ids = stored - np.uint32(layout.top_k)
    target_ids[soft] = own_ids
    if (target_ids >= layout.vocabulary_size).any():
        raise DecodeError("target", f"a target id is not below {layout.vocabulary_size:,}")
    dense = Targets(
        ids=ids,
        logprobs=logprobs,
        tail=tail,
        target_ids=own_ids,
        target_logprobs=arrays["target_logprob"].astype(np.float32),
        soft=np.ones(len(ids), dtype=np.bool_),
    )
    return dense.spread(soft, target_ids)
