"""What the rest of storage asks of a format version. A version is a `FormatVersion` of its own; storage.format lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from storage.canonical import digest_of
from storage.format.layout import Layout
from storage.format.table import Counts, Shapes, Table
from storage.targets import SampleTargets, Targets

MAX_UNIT_VALUES = 2**24
MAX_UNIT_SAMPLES = 2**20


class DecodeError(ValueError):
    """The arrays of a unit contradict each other; `array` names the one that is wrong."""

    def __init__(self, array: str, message: str) -> None:
        super().__init__(message)
        self.array = array


@dataclass(frozen=True, kw_only=True)
class EncodedUnit:
    """A unit as the format stores it."""

    counts: Counts
    attributes: dict[str, Any]
    """The attributes of the unit's group: what decoding needs."""
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class DecodedUnit:
    """All samples of a unit, their positions one after the other."""

    keys: tuple[str, ...]
    offsets: NDArray[np.int64]
    """[S + 1] sample s has the positions offsets[s] to offsets[s + 1]."""
    hard: NDArray[np.bool_]
    """[S] whether the target ids are ground truth."""
    targets: Targets
    """The targets of all positions of the unit."""

    def sample(self, index: int) -> SampleTargets:
        """The targets of one sample, as views of the unit's arrays."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return SampleTargets(key=self.keys[index], hard=bool(self.hard[index]), targets=self.targets.rows(rows))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name: those of the targets beside `offsets` and `hard`."""
        return {"offsets": self.offsets, "hard": self.hard, **self.targets.arrays()}

    @classmethod
    def from_arrays(cls, keys: Sequence[str], arrays: Mapping[str, NDArray[Any]], kind: type[Targets]) -> Self:
        """The unit of these keys and `arrays`; `kind` is the class of its targets."""
        own = {"offsets", "hard"}
        targets = kind(**{name: array for name, array in arrays.items() if name not in own})
        return cls(keys=tuple(keys), offsets=arrays["offsets"], hard=arrays["hard"], targets=targets)

    def nbytes(self) -> int:
        """Memory of the decoded arrays, in bytes."""
        return self.targets.nbytes + self.offsets.nbytes + 160 * len(self.keys)


class FormatVersion(ABC):
    """A format version, for the caches of one specification."""

    number: ClassVar[int]
    """The specification's `format_version`."""
    table: ClassVar[Table[Layout]]
    """Every array and attribute of a unit."""
    targets: ClassVar[type[Targets]]
    """What a sample's targets are."""
    layout: Layout

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Read what the arrays depend on; InvalidSpec naming a field that is missing or impossible."""
        self.spec = dict(spec)
        self.spec_digest = digest_of(spec)

    @abstractmethod
    def describe(self) -> str:
        """Which targets a cache holds, in a few words."""

    @abstractmethod
    def values_per_position(self) -> int:
        """Numbers that the widest array holds for a soft position; a unit has at most MAX_UNIT_VALUES."""

    @abstractmethod
    def checked(self, sample: SampleTargets) -> SampleTargets:
        """A copy of a sample to be written; InvalidTargets for a wrong key, dtype or shape."""

    @abstractmethod
    def encode(self, samples: Sequence[SampleTargets]) -> EncodedUnit:
        """The unit of checked samples; equal samples give equal arrays. InvalidTargets names an impossible value."""

    @abstractmethod
    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecodedUnit:
        """The samples in the arrays of a unit; DecodeError naming the array that contradicts the others."""

    def problem(self, attributes: Mapping[str, Any], shapes: Shapes, counts: Counts) -> str | None:
        """What is wrong with what a manifest claims of its unit, before any object of it is opened; None: nothing."""
        given = (counts.samples, counts.positions, counts.soft_positions)
        limits = (MAX_UNIT_SAMPLES, MAX_UNIT_VALUES, counts.positions)
        if any(type(count) is not int or not 0 <= count <= limit for count, limit in zip(given, limits, strict=True)):
            return f"its counts of samples, positions and soft positions are {list(given)}"
        if counts.soft_positions * self.values_per_position() > MAX_UNIT_VALUES:
            return f"it has more than {MAX_UNIT_VALUES:,} stored entries"
        return self.table.problem(attributes, shapes, counts, self.layout)
