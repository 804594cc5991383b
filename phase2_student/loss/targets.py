"""What answer positions are trained on: stored top-k entries, whole distributions, or the teacher's states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from firstsight.models.tail_shape import TailShape
from firstsight.models.teacher_head import SoftHead

_LOG_NOTHING = -103.3
"""log of the smallest positive float32: the value for a token of an empty tail."""

# N answer positions, n of one chunk, r directions of a tail,
# K stored entries, S shared ids in the order of the student's ids, D hidden size of the teacher


@dataclass(frozen=True, kw_only=True)
class TensorFields:
    """A dataclass that moves all its tensors together, also those in dictionaries and in nested fields of this kind."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with the function applied to every tensor."""
        return replace(self, **{field.name: _mapped(getattr(self, field.name), function) for field in fields(self)})

    def to(self, device: torch.device) -> Self:
        """A copy on a device; the host does not wait for tensors in pinned memory."""
        return self.mapped(
            lambda tensor: tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())
        )

    def pin_memory(self) -> Self:
        """A copy in pinned memory; called by `torch.utils.data.DataLoader`."""
        return self.mapped(Tensor.pin_memory)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorFields):
        return value.mapped(function)
    if isinstance(value, dict):
        return {name: _mapped(each, function) for name, each in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class PositionTargets(TensorFields):
    """What every answer position has, whatever its soft targets are."""

    target_ids_N: Tensor
    """int64: the answer's own tokens, in the student's ids."""
    soft_N: Tensor
    """bool: the position has soft targets."""
    hard_N: Tensor
    """bool: the answer is ground truth, so the hard-label loss applies."""

    def counted(self) -> Tensor:
        """int64 scalar, N of the loss: positions with a soft target or a hard label."""
        return (self.soft_N | self.hard_N).sum()


@dataclass(frozen=True, kw_only=True)
class StoredTargets(PositionTargets):
    """Entries of a cache and the mass of the rest, at the training temperature."""

    ids_NK: Tensor
    """int64: student ids of the stored entries, distinct and shared in every row, soft or not; the most likely one first."""
    log_p_NK: Tensor
    """float32: their log-probabilities, nats."""
    log_r_N: Tensor
    """float32: log of the mass not stored, nats; -inf: nothing."""
    log_r1_N: Tensor | None = None
    """float32: the same at T = 1; None: not known."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The positions of several samples in a row."""
        columns: dict[str, list[Any]] = {
            field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)
        }
        joined: dict[str, Any] = {
            name: None if column[0] is None else torch.cat(column) for name, column in columns.items()
        }
        return cls(**joined)

    def at_one(self, temperature: float) -> Self | None:
        """The same at T = 1; None if the mass of the rest is not known there.

        Args:
            temperature: temperature of these targets.
        """
        if self.log_r1_N is None:
            return None
        # stored entries keep their proportions, p(T = 1) ~ p(T)^T, and share the mass that the rest leaves
        held_N = (-self.log_r1_N.double().exp()).log1p().float()
        log_p_NK = (temperature * self.log_p_NK).log_softmax(dim=1) + held_N[:, None]
        return replace(self, log_p_NK=log_p_NK, log_r_N=self.log_r1_N)

    def chunk(self, rows: slice | Tensor) -> Self:
        """The targets of some positions."""
        return self.mapped(lambda tensor: tensor[rows])

    @property
    def top_ids_N1(self) -> Tensor:
        """int64: the teacher's most likely id."""
        return self.ids_NK[:, :1]


@dataclass(frozen=True, kw_only=True)
class FullTargets(PositionTargets):
    """The whole distribution over the shared ids, at the training temperature: for a few positions at a time."""

    log_p_NS: Tensor
    """float32: finite log-probabilities, nats."""
    shared_ids_S: Tensor
    """int64, ascending: the student ids of the columns."""
    top_N: Tensor | None = None
    """int64: the teacher's most likely id, if it is known separately; None: the id with the largest log-probability."""

    def at_one(self, temperature: float) -> FullTargets:
        """The same at T = 1, from this temperature."""
        return replace(self, log_p_NS=(temperature * self.log_p_NS).log_softmax(dim=1))

    def chunk(self, rows: slice | Tensor) -> FullTargets:
        """The distributions of some positions."""
        return FullTargets(
            log_p_NS=self.log_p_NS[rows],
            shared_ids_S=self.shared_ids_S,
            top_N=None if self.top_N is None else self.top_N[rows],
            target_ids_N=self.target_ids_N[rows],
            soft_N=self.soft_N[rows],
            hard_N=self.hard_N[rows],
        )

    @property
    def top_ids_N1(self) -> Tensor:
        """int64: the teacher's most likely id."""
        if self.top_N is not None:
            return self.top_N[:, None]
        return self.shared_ids_S[self.log_p_NS.argmax(dim=1, keepdim=True)]


@dataclass(frozen=True, kw_only=True)
class TeacherTargets(PositionTargets):
    """The teacher's hidden states, from which the whole distribution is made chunk by chunk."""

    states_ND: Tensor
    """Any float dtype; finite also at positions that are not soft."""
    head: SoftHead
    """The teacher's head. It is neither a module nor a `TensorFields`, so it is not moved, sharded or saved."""
    temperature: float
    """T of the distributions."""

    def at_one(self, _temperature: float) -> TeacherTargets:
        """The same at T = 1."""
        return replace(self, temperature=1.0)

    def chunk(self, rows: slice | Tensor) -> FullTargets:
        """The distributions of some positions."""
        device = self.target_ids_N.device
        return FullTargets(
            log_p_NS=self.head.log_probabilities(self.states_ND[rows], self.temperature).to(device),
            shared_ids_S=self.head.student_ids_S.to(device),
            target_ids_N=self.target_ids_N[rows],
            soft_N=self.soft_N[rows],
            hard_N=self.hard_N[rows],
        )


@dataclass(frozen=True, kw_only=True)
class CoordinateTargets(StoredTargets):
    """Stored entries with the coordinates of their tail's shape, not yet joined with the head that turns these into logits."""

    coefficients_Nr: Tensor
    """float32: the coordinates in the cache."""


@dataclass(frozen=True, kw_only=True)
class ShapedTargets(PositionTargets):
    """Stored entries and a tail with a shape, expanded to whole distributions chunk by chunk."""

    stored: CoordinateTargets
    shape: TailShape
    """Turns coordinates into logits. Like `TeacherTargets.head`, it is neither a module nor a `TensorFields`."""
    temperature: float
    """T of the stored entries and of the distributions."""

    @classmethod
    def of(cls, stored: CoordinateTargets, shape: TailShape, temperature: float) -> ShapedTargets:
        """Join stored targets with the shape; both must be on one device."""
        known = {field.name: getattr(stored, field.name) for field in fields(PositionTargets)}
        return cls(stored=stored, shape=shape, temperature=temperature, **known)

    def at_one(self, temperature: float) -> ShapedTargets | None:
        """As `StoredTargets.at_one`."""
        stored = self.stored.at_one(temperature)
        return None if stored is None else replace(self, stored=stored, temperature=1.0)

    def chunk(self, rows: slice | Tensor) -> FullTargets:
        """The distributions of some positions."""
        stored = self.stored.chunk(rows)
        columns_nK = self.shape.columns(stored.ids_NK)
        log_p_nS = self.shape.log_tail(stored.coefficients_Nr, columns_nK, self.temperature)
        log_p_nS.add_(stored.log_r_N[:, None]).scatter_(1, columns_nK, stored.log_p_NK).clamp_(min=_LOG_NOTHING)
        return FullTargets(
            log_p_NS=log_p_nS,
            shared_ids_S=self.shape.student_ids_S,
            top_N=stored.ids_NK[:, 0],
            target_ids_N=stored.target_ids_N,
            soft_N=stored.soft_N,
            hard_N=stored.hard_N,
        )


LossTargets = StoredTargets | FullTargets | TeacherTargets | ShapedTargets
