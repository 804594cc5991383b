"""What the rest of storage asks of a format version. A version is a `FormatVersion` of its own; storage.format lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from storage.canonical import digest_of
from storage.errors import InvalidTargets
from storage.format.head_table import HeadSizes
from storage.format.layout import Layout
from storage.format.table import Counts, Shapes, Table
from storage.keys import check_key
from storage.targets import SampleTargets, StoredSample, Targets, Turn

MAX_UNIT_VALUES = 2**24
MAX_UNIT_SAMPLES = 2**20


SAMPLE_ARRAYS = ("offsets", "turns", "turn_offsets")
"""The arrays of a decoded unit that say which samples it has."""
TOP_K = "top_k"
EXACT = "exact"


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
class SampleRows:
    """Which samples a unit has, their positions and turns one after the other."""

    keys: tuple[str, ...]
    offsets: NDArray[np.int64]
    """[S + 1] sample s has the positions offsets[s] to offsets[s + 1]."""
    turns: NDArray[np.uint32]
    """[A, 2] positions of each turn; 1 if its target ids are ground truth."""
    turn_offsets: NDArray[np.int64]
    """[S + 1] sample s has the turns turn_offsets[s] to turn_offsets[s + 1]."""

    def rows(self, index: int) -> slice:
        """The positions of one sample."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def turns_of(self, index: int) -> tuple[Turn, ...]:
        """The turns of one sample; empty where it has only one, as `StoredSample` has it."""
        start, stop = int(self.turn_offsets[index]), int(self.turn_offsets[index + 1])
        if stop - start == 1:
            return ()
        return tuple(Turn(int(positions), bool(hard)) for positions, hard in self.turns[start:stop])

    def is_hard(self, index: int) -> bool:
        """Whether all target ids of one sample are ground truth."""
        return bool(self.turns[int(self.turn_offsets[index]) : int(self.turn_offsets[index + 1]), 1].all())

    def nbytes(self) -> int:
        """Memory of the decoded arrays, in bytes."""
        return self.offsets.nbytes + self.turns.nbytes + self.turn_offsets.nbytes + 160 * len(self.keys)


@dataclass(frozen=True, kw_only=True)
class DecodedUnit(SampleRows):
    """All samples of a unit of kind top_k, with their targets."""

    targets: Targets
    """The targets of all positions of the unit."""

    @classmethod
    def of(cls, rows: SampleRows, targets: Targets) -> Self:
        """The unit of these samples and targets."""
        return cls(**vars(rows), targets=targets)

    def sample(self, index: int) -> SampleTargets:
        """The targets of one sample, as views of the unit's arrays."""
        targets = self.targets.rows(self.rows(index))
        return SampleTargets(
            key=self.keys[index], hard=self.is_hard(index), targets=targets, turns=self.turns_of(index)
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name: those of the targets beside `SAMPLE_ARRAYS`."""
        return {**{name: getattr(self, name) for name in SAMPLE_ARRAYS}, **self.targets.arrays()}

    @classmethod
    def from_arrays(cls, keys: Sequence[str], arrays: Mapping[str, NDArray[Any]], kind: type[Targets]) -> Self:
        """The unit of these keys and `arrays`; `kind` is the class of its targets."""
        targets = kind(**{name: array for name, array in arrays.items() if name not in SAMPLE_ARRAYS})
        return cls(keys=tuple(keys), targets=targets, **{name: arrays[name] for name in SAMPLE_ARRAYS})

    def nbytes(self) -> int:
        """Memory of the decoded arrays, in bytes."""
        return super().nbytes() + self.targets.nbytes


@dataclass(frozen=True, kw_only=True)
class ExactUnit(SampleRows):
    """All samples of a unit of kind exact, without their states."""

    target_ids: NDArray[np.uint32]
    """[P] the answers' own tokens as teacher ids."""

    def nbytes(self) -> int:
        """Memory of the decoded arrays, in bytes."""
        return super().nbytes() + self.target_ids.nbytes


class FormatVersion(ABC):
    """A format version, for the caches of one specification."""

    number: ClassVar[int]
    """The specification's `format_version`."""
    kind: ClassVar[str]
    """Which targets a cache holds: TOP_K or EXACT."""
    max_values: ClassVar[int] = MAX_UNIT_VALUES
    """A unit has at most this many numbers in its widest array."""
    replans_skipped: ClassVar[bool] = False
    """Whether a key that every unit skipped may be planned again."""
    table: Table[Any]
    """Every array and attribute of a unit."""
    layout: Any
    """What the arrays depend on."""
    head: HeadSizes | None = None
    """The sizes of the cache's head object; None: it has none."""
    names_head: ClassVar[bool] = False
    """Whether a manifest has the field `head`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Read what the arrays depend on; InvalidSpec naming a field that is missing or impossible."""
        self.spec = dict(spec)
        self.spec_digest = digest_of(spec)

    @abstractmethod
    def describe(self) -> str:
        """Which targets a cache holds, in a few words."""

    @abstractmethod
    def values_per_position(self) -> int:
        """Numbers that the widest array holds for a soft position; a unit has at most `max_values`."""

    @abstractmethod
    def checked(self, sample: StoredSample) -> StoredSample:
        """A copy of a sample to be written; InvalidTargets for a wrong key, dtype or shape."""

    @abstractmethod
    def encode(self, samples: Sequence[StoredSample]) -> EncodedUnit:
        """The unit of checked samples; equal samples give equal arrays. InvalidTargets names an impossible value."""

    @abstractmethod
    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SampleRows:
        """The samples in the arrays of a unit; DecodeError naming the array that contradicts the others."""

    def problem(self, attributes: Mapping[str, Any], shapes: Shapes, counts: Counts) -> str | None:
        """What is wrong with what a manifest claims of its unit, before any object of it is opened; None: nothing."""
        given = (counts.samples, counts.positions, counts.soft_positions)
        limits = (MAX_UNIT_SAMPLES, MAX_UNIT_VALUES, counts.positions)
        if any(type(count) is not int or not 0 <= count <= limit for count, limit in zip(given, limits, strict=True)):
            return f"its counts of samples, positions and soft positions are {list(given)}"
        if counts.soft_positions * self.values_per_position() > self.max_values:
            return f"it has more than {self.max_values:,} stored entries"
        return self.table.problem(attributes, shapes, counts, self.layout)


class TopKVersion(FormatVersion):
    """A version, or a kind of one, that stores the k largest entries of each position and a tail."""

    kind = TOP_K
    targets: type[Targets] = Targets
    """What a sample's targets are."""
    layout: Layout

    def describe(self) -> str:
        """See `FormatVersion.describe`."""
        return f"top_k = {self.layout.top_k}"

    def values_per_position(self) -> int:
        """Stored entries, tails or coefficients, whichever are more; see `FormatVersion.values_per_position`."""
        return max(self.layout.widths.values())

    def checked(self, sample: StoredSample) -> SampleTargets:
        """See `FormatVersion.checked`; zeros where a position is not soft."""
        where = f"sample {check_key(sample.key)}"
        if not isinstance(sample, SampleTargets):
            raise InvalidTargets(f"{where}: this cache holds {TOP_K} targets, got {type(sample).__name__}")
        if not isinstance(sample.targets, self.targets):
            raise InvalidTargets(f"{where}: expected {self.targets.__name__}, got {type(sample.targets).__name__}")
        targets = sample.targets.checked(self.layout.widths, where)
        return replace(sample, hard=bool(sample.hard), targets=targets)

    @abstractmethod
    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecodedUnit:
        """See `FormatVersion.decode`."""

    def joined(self, samples: Sequence[StoredSample]) -> Targets:
        """The targets of checked samples one after the other."""
        parts = [sample.targets for sample in samples if isinstance(sample.targets, Targets)]
        return self.targets.concatenate(parts, self.layout.widths)
