"""What the arrays of a cache of the k largest entries depend on: four fields of its specification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidSpec

MAX_VOCABULARY = 2**24
MAX_TOP_K = 2**20
MAX_NODES = 16


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields of a specification that the arrays depend on."""

    top_k: int
    """Stored entries per soft position."""
    temperatures: tuple[float, ...]
    """Node temperatures of the tail, ascending."""
    vocabulary_size: int
    """Rows of the student's head; every stored id is smaller."""
    shared_ids: tuple[tuple[int, int], ...]
    """Ascending half-open ranges of the student ids that both vocabularies have."""
    tail_rank: int = 0
    """r, numbers per soft position that give the shape of the tail; 0: none."""
    hidden_size: int = 0
    """D, numbers in a hidden state of the teacher; 0 where there is no tail rank."""

    @property
    def widths(self) -> dict[str, int]:
        """The lengths of the axes of `Targets` beside the positions."""
        return {"entry": self.top_k, "node": len(self.temperatures), "direction": self.tail_rank}

    def shared_mask(self) -> NDArray[np.bool_]:
        """[vocabulary_size] True where both vocabularies have the student id."""
        mask = np.zeros(self.vocabulary_size, dtype=np.bool_)
        for start, stop in self.shared_ids:
            mask[start:stop] = True
        return mask


def layout_of(spec: Mapping[str, Any]) -> Layout:
    """The checked layout fields of a specification; InvalidSpec naming the field."""
    top_k = whole(spec, "top_k", 1, MAX_TOP_K)
    vocabulary_size = whole(spec, "vocabulary_size", 1, MAX_VOCABULARY)
    nodes = spec.get("temperatures")
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES or not all(map(_positive, nodes)):
        raise InvalidSpec(f"spec.temperatures: expected 1 to {MAX_NODES} positive numbers, got {nodes!r}")
    if any(low >= high for low, high in pairwise(nodes)):
        raise InvalidSpec(f"spec.temperatures: expected ascending and distinct numbers, got {nodes!r}")
    ranges = spec.get("shared_ids")
    if not isinstance(ranges, list) or not all(_range(item) for item in ranges):
        raise InvalidSpec("spec.shared_ids: expected a list of [start, stop) pairs of whole numbers")
    edges = [edge for pair in ranges for edge in pair]
    if any(low > high for low, high in pairwise(edges)) or (edges and edges[-1] > vocabulary_size):
        raise InvalidSpec(f"spec.shared_ids: expected ascending, disjoint ranges within [0, {vocabulary_size})")
    shared = sum(stop - start for start, stop in ranges)
    if shared < top_k:
        raise InvalidSpec(f"spec.top_k: {top_k} entries cannot be stored: there are {shared} shared ids; lower top_k")
    return Layout(
        top_k=top_k,
        temperatures=tuple(float(node) for node in nodes),
        vocabulary_size=vocabulary_size,
        shared_ids=tuple((start, stop) for start, stop in ranges),
    )


def whole(spec: Mapping[str, Any], name: str, low: int, high: int, where: str = "spec") -> int:
    """A field of a specification that is a whole number; InvalidSpec naming it."""
    value = spec.get(name)
    if type(value) is not int or not low <= value <= high:
        raise InvalidSpec(f"{where}.{name}: expected a whole number from {low:,} to {high:,}, got {value!r}")
    return value


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _range(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(type(edge) is int and edge >= 0 for edge in item)
