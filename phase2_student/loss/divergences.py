"""Divergences between the teacher's distribution p and the student's q: the value of each and its slope.

A divergence sees a few outcomes per answer position (the stored ids and one bucket for the rest, or all shared ids) and
knows nothing of logits, temperature or vocabulary. To add one, write a class here, enter it in `DIVERGENCES`, and add its name
to `firstsight.recipe.LossSection.divergence`. All of them are f-divergences: merging outcomes never makes one larger, so
the divergence on stored entries and bucket is a lower bound of the full one.

Everything is computed from log p and log q, because p or q may round to 0 in float32; nothing here becomes NaN when they do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from firstsight.recipe import LossSection

# b answer positions, O outcomes of each

_LEAST = -1e4
"""Replaces -inf in differences of logs: times a probability of 0 it is 0."""
_LOG_SMALLEST = -103.3
"""log of the smallest positive float32."""


@dataclass(frozen=True)
class Divergence(ABC):
    """D(p, q) of distributions over the same outcomes; its fields have the names of keys in the recipe's `loss`."""

    least_log_p: ClassVar[float] = -1e4
    """log p of a stored outcome that has probability 0 for the teacher."""
    distributions: ClassVar[int] = 4
    """Arrays of the outcomes' size that the loss of a chunk holds at once: teacher, student, slope, and what is worked in."""

    @property
    def text(self) -> str:
        """Its name in the recipe and its keys, such as `skewed_kl, beta = 0.1`."""
        name = next(name for name, kind in DIVERGENCES.items() if kind is type(self))
        return ", ".join([name, *(f"{field.name} = {getattr(self, field.name):g}" for field in fields(self))])

    @abstractmethod
    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """The divergence of every position, and its derivative in every log q.

        Args:
            log_p_bO: float32, nats; finite: `least_log_p` for a stored outcome that has probability 0 for the teacher.
            log_q_bO: float32, nats; -inf for an outcome that is possible for the teacher but not for the student.

        Returns:
            (D float32 [b], dD/dlog q float32 [b, O]), both new tensors. The slope treats each log q_i as a free variable; that q
            sums to one is taken into account afterwards.
        """


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(p || q) = sum p log(p / q)."""

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; the slope is -p."""
        slope_bO = log_p_bO.exp().neg_()
        return (log_q_bO - log_p_bO).mul_(slope_bO).sum(dim=1), slope_bO


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(q || p) = sum q log(q / p); a stored outcome with probability 0 for the teacher counts as float32's smallest number."""

    least_log_p: ClassVar[float] = _LOG_SMALLEST

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; the slope is q (log(q / p) + 1)."""
        q_bO = log_q_bO.exp()
        ratio_bO = (log_q_bO - log_p_bO).clamp_(min=_LEAST)
        part_bO = ratio_bO.mul_(q_bO)
        value_b = part_bO.sum(dim=1)
        return value_b, part_bO.add_(q_bO)


@dataclass(frozen=True)
class SkewedKL(Divergence):
    """KL(p || m) with m = beta p + (1 - beta) q: at most -log beta, wherever the student is.

    Source: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models (2024), their alpha.
    """

    distributions: ClassVar[int] = 5

    beta: float = 0.1

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; with x = log((1 - beta) q / (beta p)): m / p = beta (1 + e^x), and the slope is -p sigmoid(x)."""
        x_bO = _log_odds(log_p_bO, log_q_bO, self.beta)
        slope_bO = log_p_bO.exp().neg_()
        value_b = softplus(x_bO).add_(math.log(self.beta)).mul_(slope_bO).sum(dim=1)
        return value_b, x_bO.detach().sigmoid().mul_(slope_bO)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, as TRL's GKDTrainer defines it.

    Source: Agarwal et al., On-Policy Distillation of Language Models (2023), equation 1.
    """

    distributions: ClassVar[int] = 5

    beta: float = 0.5

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; with x as in `SkewedKL`, q / m = 1 / ((1 - beta) (1 + e^-x)): slope (1 - beta) q log(q / m)."""
        x_bO = _log_odds(log_p_bO, log_q_bO, self.beta)
        teacher_bO = softplus(x_bO).add_(math.log(self.beta)).mul_(log_p_bO.exp())
        value_b = teacher_bO.sum(dim=1).mul_(-self.beta)
        del teacher_bO
        slope_bO = softplus(-x_bO).add_(math.log1p(-self.beta)).mul_(log_q_bO.exp()).mul_(self.beta - 1)
        return value_b.add_(slope_bO.sum(dim=1)), slope_bO


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Half the sum of |p - q|, between 0 and 1; not in nats."""

    distributions: ClassVar[int] = 5

    def value_and_slope(self, log_p_bO: Tensor, log_q_bO: Tensor) -> tuple[Tensor, Tensor]:
        """As `Divergence`; the slope is q / 2 where q > p, -q / 2 where q < p, 0 where they are equal."""
        q_bO = log_q_bO.exp()
        over_bO = q_bO - log_p_bO.exp()
        value_b = over_bO.abs().sum(dim=1).mul_(0.5)
        return value_b, over_bO.detach().sign().mul_(q_bO.detach()).mul_(0.5)


def _log_odds(log_p_bO: Tensor, log_q_bO: Tensor, beta: float) -> Tensor:
    """log((1 - beta) q / (beta p)), finite."""
    return (log_q_bO - log_p_bO).add_(math.log1p(-beta) - math.log(beta)).clamp_(min=_LEAST)


DIVERGENCES: dict[str, type[Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "skewed_kl": SkewedKL,
    "js": JensenShannon,
    "tv": TotalVariation,
}
"""Divergence classes by their names in the recipe."""


def divergence_of(section: LossSection) -> Divergence:
    """The divergence that a recipe states, with its keys."""
    kind = DIVERGENCES[section.divergence]
    return kind(**{field.name: getattr(section, field.name) for field in fields(kind)})
