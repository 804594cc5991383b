"""What answer positions are trained on: stored top-k entries, or the teacher itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from firstsight.teacher_head import TeacherHead

# N answer positions, K stored entries, S shared ids in the order of the student's ids, D hidden size of the teacher


@dataclass(frozen=True, kw_only=True)
class AnswerTargets:
    """What a batch's answer positions are trained on, as a cache holds it."""

    ids_NK: Tensor
    """int64: student ids of the stored entries, distinct and shared in every row, soft or not; the most likely one first."""
    log_p_NK: Tensor
    """float32: their log-probabilities at the training temperature."""
    log_r_N: Tensor
    """float32: log of the mass not stored; -inf: nothing."""
    target_ids_N: Tensor
    """int64: the answer's own tokens."""
    soft_N: Tensor
    """bool: soft targets exist here."""
    hard_N: Tensor
    """bool: the answer is ground truth, so the hard-label loss applies."""

    @classmethod
    def taken_from(cls, inputs: dict[str, Any], target_ids: Tensor) -> AnswerTargets:
        """Those of a batch of `dataset.Collator`, taken out of it."""
        return cls(
            ids_NK=inputs.pop("stored_ids"),
            log_p_NK=inputs.pop("log_p"),
            log_r_N=inputs.pop("log_r"),
            target_ids_N=target_ids,
            soft_N=inputs.pop("soft"),
            hard_N=inputs.pop("hard"),
        )

    def chunk(self, rows: slice | Tensor, temperature: float) -> AnswerTargets:
        """Those of some positions."""
        return AnswerTargets(**{name: value[rows] for name, value in vars(self).items()})

    @property
    def top_ids_N1(self) -> Tensor:
        """int64: the teacher's most likely id."""
        return self.ids_NK[:, :1]


@dataclass(frozen=True, kw_only=True)
class FullTargets:
    """The whole distribution over the shared ids: for a few positions at a time."""

    log_p_NS: Tensor
    """float32: finite log-probabilities at the training temperature."""
    shared_ids_S: Tensor
    """int64, ascending: the student ids of the columns."""
    target_ids_N: Tensor
    """As in `AnswerTargets`, like the two that follow."""
    soft_N: Tensor
    hard_N: Tensor

    def chunk(self, rows: slice, temperature: float) -> FullTargets:
        """Those of some positions."""
        return FullTargets(
            log_p_NS=self.log_p_NS[rows],
            shared_ids_S=self.shared_ids_S,
            target_ids_N=self.target_ids_N[rows],
            soft_N=self.soft_N[rows],
            hard_N=self.hard_N[rows],
        )

    @property
    def top_ids_N1(self) -> Tensor:
        """int64: the teacher's most likely id."""
        return self.shared_ids_S[self.log_p_NS.argmax(dim=1, keepdim=True)]


@dataclass(frozen=True, kw_only=True)
class TeacherTargets:
    """The teacher's hidden states, from which the whole distribution is made chunk by chunk."""

    states_ND: Tensor
    """Any float dtype; finite where not soft, too."""
    head: TeacherHead
    target_ids_N: Tensor
    """As in `AnswerTargets`, like the two that follow."""
    soft_N: Tensor
    hard_N: Tensor

    def chunk(self, rows: slice, temperature: float) -> FullTargets:
        """The distributions of some positions."""
        device = self.target_ids_N.device
        return FullTargets(
            log_p_NS=self.head.log_probabilities(self.states_ND[rows], temperature).to(device),
            shared_ids_S=self.head.student_ids_S.to(device),
            target_ids_N=self.target_ids_N[rows],
            soft_N=self.soft_N[rows],
            hard_N=self.hard_N[rows],
        )


LossTargets = AnswerTargets | FullTargets | TeacherTargets
