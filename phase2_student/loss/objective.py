"""What training minimises: a divergence from the teacher and the cross-entropy of the labels, weighted and averaged.

    objective = Objective.of_recipe(recipe.loss)
    L = [ alpha sum_soft T^2 D(p_T, q_T)  +  (1 - alpha) sum_hard CE ] / N

The two parts are combined here and nowhere else: their gradients by `weights`, their sums by `loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from firstsight.recipe import LossSection
from phase2_student.loss.divergences import Divergence, ForwardKL, divergence_of

TailMode = Literal["bucket", "renormalize", "none"]


class LossTerms(NamedTuple):
    """Sums over one batch or many; scalars without gradient."""

    kd: Tensor
    """Sum of T^2 D over soft positions, nats; NaN if it was not computed (alpha = 0, in training)."""
    ce: Tensor
    """Sum of cross-entropy over hard positions, nats."""
    agree: Tensor
    """Number of soft positions at which the student's most likely token is the teacher's."""
    soft: Tensor
    """Number of soft positions."""
    hard: Tensor
    """Number of hard positions."""
    counted: Tensor
    """Positions that are soft or hard: N of the mean."""
    kl: Tensor
    """Sum of KL(teacher || student) at T = 1 over soft positions, nats, whatever is minimised; NaN if it was not computed (in
    training, or if the targets are not known at T = 1)."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a run, for any kind of targets."""

    temperature: float
    """T of both distributions; the targets must be given at this temperature."""
    alpha: float
    """Weight of the divergence; 1 - alpha weighs the cross-entropy."""
    divergence: Divergence = field(default_factory=ForwardKL)
    tail: TailMode = "bucket"
    """How ids that are not stored count. `bucket`: together as one outcome; `renormalize`: left out, with both distributions
    conditioned on the stored ids; `none`: left out of the sum. No effect on whole distributions or a tail with a shape."""

    @classmethod
    def of_recipe(cls, section: LossSection) -> Objective:
        """The objective that a recipe states."""
        return cls(
            temperature=section.temperature,
            alpha=section.alpha,
            divergence=divergence_of(section),
            tail="bucket" if section.tail is None or section.tail == "shape" else section.tail,
        )

    def text(self, entries: int | None, tail_rank: int = 0) -> str:
        """The objective in words, for the log.

        Args:
            entries: stored entries per position; None: the targets are whole distributions.
            tail_rank: rank of the tail's shape in training; 0: no shape.
        """
        if self.alpha == 0:
            return "cross-entropy alone (alpha = 0)"
        of = {
            "bucket": ", a lower bound: on {k} stored entries and the rest as one outcome",
            "renormalize": ", on {k} stored entries, renormalised",
            "none": ", the sum over {k} stored entries alone",
        }[self.tail]
        if tail_rank:
            of = f", on {entries} stored entries and a tail of rank {tail_rank}"
        where = "" if entries is None else of.format(k=entries)
        return f"T = {self.temperature:g}, alpha = {self.alpha:g}, {self.divergence.text}{where}"

    @property
    def is_kl(self) -> bool:
        """Whether `LossTerms.kd` is KL(teacher || student) at T = 1."""
        return self.temperature == 1 and isinstance(self.divergence, ForwardKL) and self.tail == "bucket"

    def takes_soft(self, *, training: bool) -> bool:
        """Whether soft targets are needed: training on hard labels alone skips them, validation always shows both parts."""
        return not training or self.alpha > 0

    def weights(self, soft_b: Tensor, hard_b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """Factors [b, 1] of dD/d(logit / T) and of dCE/dlogit in the gradient of the loss in the logits.

        Args:
            soft_b: bool, positions with soft targets.
            hard_b: bool, positions with a label.
            scale: 1 / N.

        Returns:
            The factors; the second is None if the cross-entropy has no weight.
        """
        # T^2 keeps the gradient's size when T changes (Hinton, Vinyals and Dean 2015, section 2); d(logit / T) cancels one T
        soft_b1 = (self.alpha * self.temperature * scale * soft_b)[:, None]
        return soft_b1, None if self.alpha == 1 else ((1 - self.alpha) * scale * hard_b)[:, None]

    def loss(self, kd: Tensor, ce: Tensor) -> Tensor:
        """The weighted sum of both sums, before it is divided by N; a part without weight is ignored."""
        if self.alpha == 0:
            return ce
        return self.alpha * kd + (1 - self.alpha) * ce

    def means(self, terms: LossTerms, *, training: bool) -> dict[str, float]:
        """What a log shows of a batch or many: `loss`, `kd`, `ce` (nats per position) and `agreement` (a share). A validation adds
        `kl`: KL(teacher || student) at T = 1, by which runs of any objective can be compared.

        A part is left out if it has no positions; `kd` and `kl` also if they were not computed.
        """
        means = {"loss": self.loss(terms.kd, terms.ce) / terms.counted.clamp(min=1)}
        if self.takes_soft(training=training):
            means["kd"] = terms.kd / terms.soft
        means |= {"ce": terms.ce / terms.hard, "agreement": terms.agree / terms.soft}
        if not training:
            means["kl"] = terms.kl / terms.soft
        # one tensor, so that the device is waited for once
        *values, soft, hard = torch.stack([*means.values(), terms.soft, terms.hard]).tolist()
        positions = {"loss": 1, "kd": soft, "ce": hard, "agreement": soft, "kl": soft}
        found = dict(zip(means, values, strict=True))
        return {
            name: value for name, value in found.items() if positions[name] and not (name == "kl" and math.isnan(value))
        }

    def weighs(self, soft_N: Tensor, hard_N: Tensor) -> bool:
        """Whether any of some positions has a part in the loss.

        Args:
            soft_N: bool, positions with soft targets.
            hard_N: bool, positions with a label.
        """
        return bool((self.alpha > 0 and soft_N.any()) or (self.alpha < 1 and hard_N.any()))


PLAIN_KL = Objective(temperature=1.0, alpha=1.0)
"""KL(teacher || student) alone."""
