"""What the cache holds for one sample: soft targets in the student's vocabulary, position by position.

A field is declared once, in `Targets`; whatever copies, joins, checks or maps targets follows that declaration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from storage.errors import InvalidTargets


def per_position(dtype: DTypeLike, *axes: str, soft: bool = False) -> dict[str, Any]:
    """The declaration of a field of targets: an array whose first axis is the position.

    Args:
        dtype: of the array.
        axes: the names of its other axes; how long they are is a fact of the cache (`Layout.widths`).
        soft: it belongs to soft positions alone and is zero elsewhere.
    """
    return {"dtype": np.dtype(dtype), "axes": axes, "soft": soft}


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Soft targets of P consecutive answer positions, K stored entries each, n node temperatures.

    For probabilities use `at_temperature`: it normalises what rounding left and gives, at any
    temperature between the nodes, the mass that is not stored.

    Attributes:
        ids: [P, K] student ids, in descending order of their log-probability.
        logprobs: [P, K] natural-log probability at T = 1 over the shared ids, nats.
        tail: [P, n] for each node T, the log of the sum of exp(v_i / T) over the ids not stored, v_i their log-probabilities at
            T = 1; nats. It is a mass only at T = 1, where it is that of all tokens not stored; -inf: none.
        target_ids: [P] the answer's own token as a student id; among `ids` wherever `soft`.
        target_logprobs: [P] the teacher's log-probability of that token, nats; may be -30 and less.
        soft: [P] False: no soft target at this position, only the hard label; its other fields are zero.
    """

    ids: NDArray[np.uint32] = field(metadata=per_position(np.uint32, "entry", soft=True))
    logprobs: NDArray[np.float32] = field(metadata=per_position(np.float32, "entry", soft=True))
    tail: NDArray[np.float32] = field(metadata=per_position(np.float32, "node", soft=True))
    target_ids: NDArray[np.uint32] = field(metadata=per_position(np.uint32))
    target_logprobs: NDArray[np.float32] = field(metadata=per_position(np.float32, soft=True))
    soft: NDArray[np.bool_] = field(metadata=per_position(np.bool_))

    def __len__(self) -> int:
        return len(self.target_ids)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(item.name for item in fields(cls))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names of their fields."""
        return dict(vars(self))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values())

    @classmethod
    def empty(cls, widths: Mapping[str, int]) -> Self:
        """Targets without positions; `widths` as in `Layout.widths`."""
        return cls(**{item.name: np.empty(_shape(item, 0, widths), item.metadata["dtype"]) for item in fields(cls)})

    @classmethod
    def concatenate(cls, parts: Sequence[Targets], widths: Mapping[str, int]) -> Self:
        """The targets of several parts one after the other; without parts, targets without positions."""
        if not parts:
            return cls.empty(widths)
        columns = {item.name: [getattr(part, item.name) for part in parts] for item in fields(cls)}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})

    def rows(self, chosen: slice | NDArray[Any]) -> Self:
        """Some of the positions: views for a slice, copies for a mask or an array of positions."""
        return type(self)(**{name: array[chosen] for name, array in vars(self).items()})

    def copy(self) -> Self:
        """The same in arrays of its own."""
        return type(self)(**{name: np.array(array) for name, array in vars(self).items()})

    def spread(self, soft: NDArray[np.bool_], target_ids: NDArray[np.uint32]) -> Self:
        """The targets of all P positions of an answer; `self` has those of its soft positions, in order.

        Args:
            soft: [P] which positions these are.
            target_ids: [P] the answer's own tokens.

        Returns:
            Zeros where a position is not soft. Where all are, the arrays are shared with these targets.
        """
        dense = soft.all()
        arrays: dict[str, NDArray[Any]] = {"soft": soft, "target_ids": target_ids}
        for item in fields(self):
            if item.metadata["soft"]:
                own = getattr(self, item.name)
                arrays[item.name] = own if dense else _spread(own, soft)
        return type(self)(**arrays)

    def checked(self, widths: Mapping[str, int], where: str) -> Self:
        """A copy with zeros where a position is not soft.

        Args:
            widths: as in `Layout.widths`.
            where: begins the message of an error.

        Raises:
            InvalidTargets: a field is not an array of its dtype and shape.
        """
        count = len(self.target_ids)
        arrays: dict[str, NDArray[Any]] = {}
        for item in fields(self):
            array, dtype, shape = getattr(self, item.name), item.metadata["dtype"], _shape(item, count, widths)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InvalidTargets(f"{where}: {item.name} must be {dtype} of shape {shape}, got {got}")
            arrays[item.name] = array.copy()
        soft = arrays["soft"]
        if not soft.all():
            for item in fields(self):
                if item.metadata["soft"]:
                    arrays[item.name][~soft] = 0
        return type(self)(**arrays)


@dataclass(frozen=True, kw_only=True)
class ShapedTargets(Targets):
    """Targets of a cache with `tail_rank`: r coordinates per position give how the tail's mass is spread."""

    tail_coefficients: NDArray[np.float32] = field(metadata=per_position(np.float32, "direction", soft=True))
    """[P, r] coordinates of the state on the directions of the cache's head, in units of the head's scale."""


@dataclass(frozen=True, kw_only=True)
class ExactTargets:
    """The teacher's hidden states at P consecutive answer positions, D numbers each."""

    target_ids: NDArray[np.uint32]
    """[P] the answer's own token as a teacher id."""
    states: NDArray[Any]
    """[P, D] the bits of the states: uint16 for bfloat16 and float16, uint32 for float32."""

    def __len__(self) -> int:
        return len(self.target_ids)


class Turn(NamedTuple):
    """One of the answers of a conversation."""

    positions: int
    """Number of its answer positions. The positions of a sample are those of its turns, one turn after the other."""
    hard: bool
    """Whether its target ids are ground truth."""


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """What a cache of either kind holds for a sample."""

    key: str
    """64 lower-case hex digits: the sha256 of the sample's content."""
    hard: bool
    """True: all target ids are ground truth, so the hard-label loss applies. False: some are the teacher's own answer."""
    targets: Targets | ExactTargets
    turns: tuple[Turn, ...] = ()
    """Its turns; empty: one turn with all positions."""

    def all_turns(self) -> tuple[Turn, ...]:
        """Its turns, also where it has only one."""
        return self.turns or (Turn(len(self.targets), bool(self.hard)),)


@dataclass(frozen=True, kw_only=True)
class SampleTargets(StoredSample):
    """The targets of one sample in a cache of kind top_k."""

    targets: Targets


@dataclass(frozen=True, kw_only=True)
class ExactSample(StoredSample):
    """The targets of one sample in a cache of kind exact."""

    targets: ExactTargets


def _shape(item: Field[Any], positions: int, widths: Mapping[str, int]) -> tuple[int, ...]:
    return (positions, *(widths[axis] for axis in item.metadata["axes"]))


def _spread(rows: NDArray[Any], soft: NDArray[np.bool_]) -> NDArray[Any]:
    """The rows of soft positions where these lie among all positions, zero elsewhere."""
    spread = np.zeros((len(soft), *rows.shape[1:]), dtype=rows.dtype)
    spread[soft] = rows
    return spread
