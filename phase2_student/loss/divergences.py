"""Divergences between the teacher's distribution p and the student's q: the value of each and its slope.

A divergence sees a few outcomes per answer position (the stored ids and one bucket for the rest, or all shared ids) and
knows nothing of logits, temperature or vocabulary. A new one is a class here, in `DIVERGENCES`, and its name in
`firstsight.recipe.LossSection.divergence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from torch import Tensor

from firstsight.recipe import LossSection

# b answer positions, O outcomes of each


@dataclass(frozen=True)
class Divergence(ABC):
    """D(p, q) of distributions over the same outcomes; its fields are keys of the recipe's `loss` by their names."""

    @abstractmethod
    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """The divergence of every position, and its derivative in every log q.

        Args:
            log_p_bO: float32, nats; finite, -1e4 for an outcome to which the teacher gives nothing.
            log_q_bO: float32, nats; -inf for an outcome that the student cannot reach and the teacher can.

        Returns:
            (D float32 [b], dD/dlog q float32 [b, O]), both new tensors. The slope is that of D as a function of the log q_i,
            each taken for itself: that q sums to one comes in afterwards.
        """


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(p || q) = sum p log(p / q)."""

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; the slope is -p."""
        slope_bO = log_p_bO.exp().neg_()
        return (log_q_bO - log_p_bO).mul_(slope_bO).sum(dim=1), slope_bO


DIVERGENCES: dict[str, type[Divergence]] = {"forward_kl": ForwardKL}
"""By the names of the recipe."""


def divergence_of(section: LossSection) -> Divergence:
    """The divergence that a recipe states, with its own keys."""
    kind = DIVERGENCES[section.divergence]
    return kind(**{field.name: getattr(section, field.name) for field in fields(kind)})
