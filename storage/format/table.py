"""The table of a format version: its arrays and attributes, declared once, and the checks that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from storage.format.chunks import array_document, chunk_paths

LayoutT = TypeVar("LayoutT")

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Array name -> dtype name and shape."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much a unit holds."""

    samples: int
    positions: int
    soft_positions: int


@dataclass(frozen=True)
class Axis(Generic[LayoutT]):
    """One axis of arrays: how long it is follows from what a unit holds and from the specification."""

    name: str
    """The dimension name in the Zarr metadata."""
    symbol: str
    """Its length in the notation of docs/FORMAT.md; empty where that has no name for it."""
    length: Callable[[Counts, LayoutT], int]
    """The length; for an axis whose length is the unit's own, the largest possible."""
    own: bool = False
    """The length is the unit's own; always so where there is no symbol."""

    @property
    def fixed(self) -> bool:
        """Whether the length is known before the unit is."""
        return bool(self.symbol) and not self.own


@dataclass(frozen=True)
class Array(Generic[LayoutT]):
    """One array of a unit."""

    name: str
    dtypes: tuple[str, ...]
    axes: tuple[Axis[LayoutT], ...]
    meaning: str
    """As in the table of docs/FORMAT.md."""
    chunk: int | None = None
    """The first axis is cut into chunks of this length; None: one chunk holds the whole array."""

    def chunk_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a chunk of an array of this shape, at least 1 everywhere."""
        whole = tuple(max(1, length) for length in shape)
        return whole if self.chunk is None else (min(self.chunk, whole[0]), *whole[1:])


@dataclass(frozen=True)
class Attribute:
    """A number that decoding needs, in the attributes of a unit's group."""

    name: str
    low: float
    high: float
    whole: bool = False
    """A whole number from `low` to `high`; else a number between them, neither of the two."""

    def allows(self, value: Any) -> bool:
        """Whether a value read from a manifest is possible."""
        if self.whole:
            return type(value) is int and self.low <= value <= self.high
        return type(value) in (int, float) and self.low < value < self.high


class Table(Generic[LayoutT]):
    """All arrays and attributes of the units of a format version."""

    def __init__(self, arrays: Sequence[Array[LayoutT]], attributes: Sequence[Attribute]) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.attributes = {attribute.name: attribute for attribute in attributes}

    def problem(self, attributes: Mapping[str, Any], shapes: Shapes, counts: Counts, layout: LayoutT) -> str | None:
        """What is wrong with the attributes, dtypes and shapes that a manifest claims, or None."""
        if set(shapes) != set(self.arrays):
            return "its list of arrays is not the one of this format"
        for name, (dtype, shape) in shapes.items():
            array = self.arrays[name]
            if dtype not in array.dtypes:
                return f"array {name} has dtype {dtype!r}"
            if any(type(length) is not int or length < 0 for length in shape):
                return f"array {name} has the shape {shape}"
            if wrong := _shape_problem(array, shape, counts, layout):
                return wrong
        if set(attributes) != set(self.attributes):
            return f"its attributes are {sorted(attributes)}"
        for name, attribute in self.attributes.items():
            if not attribute.allows(attributes[name]):
                return f"its attribute {name} is {attributes[name]!r}"
        return None

    def document(self, name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
        """The metadata document that an array of this name, dtype and shape has."""
        array = self.arrays[name]
        axes = tuple(axis.name for axis in array.axes)
        return array_document(np.dtype(dtype), shape, array.chunk_shape(shape), axes)

    def chunks(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[slice, ...]]:
        """The chunk objects of an array, path below the attempt -> the part of the array; none if it is empty."""
        found = chunk_paths(shape, self.arrays[name].chunk_shape(shape))
        return {f"{name}/{path}": part for path, part in found.items()}

    def objects(self, shapes: Shapes) -> set[str]:
        """The paths, below the attempt, of all objects of a unit with these arrays."""
        paths = {"zarr.json"}
        for name, (_, shape) in shapes.items():
            paths |= {f"{name}/zarr.json", *self.chunks(name, shape)}
        return paths


def _shape_problem(array: Array[LayoutT], shape: tuple[int, ...], counts: Counts, layout: LayoutT) -> str | None:
    lengths = tuple(axis.length(counts, layout) for axis in array.axes)
    fits = len(shape) == len(lengths) and all(
        given == length if axis.fixed else given <= length
        for axis, given, length in zip(array.axes, shape, lengths, strict=True)
    )
    if fits:
        return None
    bounded = any(not axis.fixed for axis in array.axes)
    return f"array {array.name} has the shape {shape}, expected {f'at most {lengths}' if bounded else lengths}"
