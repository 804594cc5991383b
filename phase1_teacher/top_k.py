"""From the teacher's hidden states to soft targets: head in fp32, alignment, top-k, tails.

    targets = TargetMaker(head_weight, alignment, top_k=64, temperatures=(1, 1.5, 2, 4))
    block = targets(states, target_ids)

For the logits z on the shared ids, v_i = z_i - logsumexp(z). Kept are the k largest v_i, the answer's own token always
among them, and for each node temperature T the log of the mass not kept, log sum exp(v_i / T). Mass on tokens that the
student does not have is dropped before top-k and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstsight.vocabulary import VocabularyAlignment

# N answer positions, n of one chunk, K stored entries, D hidden size, S shared ids, J node temperatures


@dataclass(frozen=True, kw_only=True)
class TargetBlock:
    """Soft targets of N answer positions, on the device that made them."""

    ids_NK: Tensor
    """int64, student ids, by descending log-probability."""
    logprobs_NK: Tensor
    """float32, nats, at T = 1 over the shared ids."""
    tail_NJ: Tensor
    """float32: log sum of exp(v / T) over what is not stored; -inf: nothing."""
    target_logprobs_N: Tensor
    """float32: log-probability of the answer's own token."""
    dropped_N: Tensor
    """float32: probability that lay on tokens which the student does not have."""
    finite_N: Tensor
    """bool: all logits were finite."""


class TargetMaker:
    """Makes soft targets, `chunk` positions at a time.

    Args:
        head_VD: the teacher's head, any float dtype; kept in fp32 (a bf16 head rounds logits near 20 to steps of 1/8).
        bias_V: of the head, or None.
        alignment: teacher ids to student ids.
        top_k: entries to store; at most the number of shared ids.
        temperatures: node temperatures of the tail.
        chunk: positions projected at once.
    """

    def __init__(
        self,
        head_VD: Tensor,
        bias_V: Tensor | None,
        alignment: VocabularyAlignment,
        *,
        top_k: int,
        temperatures: Sequence[float],
        chunk: int = 256,
    ) -> None:
        device = head_VD.device
        self.head_VD = head_VD.detach().float()
        self.bias_V = None if bias_V is None else bias_V.detach().float()
        self.top_k = top_k
        self.temperatures = tuple(temperatures)
        self.chunk = chunk
        student_ids = torch.from_numpy(alignment.shared.nonzero()[0])
        teacher_ids = torch.from_numpy(alignment.teacher_of_student[alignment.shared])
        self._student_ids_S = student_ids.to(device)
        # equal ids in front: a view instead of a gather over the vocabulary
        prefix = bool((teacher_ids == torch.arange(len(teacher_ids))).all())
        self._teacher_ids_S: Tensor | slice = slice(0, len(teacher_ids)) if prefix else teacher_ids.to(device)
        column = torch.full((len(alignment.teacher_of_student),), -1, dtype=torch.int64)
        column[student_ids] = torch.arange(len(student_ids))
        self._column_of_student = column.to(device)
        alone = torch.from_numpy((alignment.student_of_teacher < 0) & alignment.teacher_tokens)
        self._alone_ids = alone.nonzero()[:, 0].to(device)

    def is_shared(self, student_ids: Tensor) -> Tensor:
        """bool, which of these student ids the teacher has."""
        found: Tensor = self._column_of_student[student_ids.to(self._column_of_student.device)] >= 0
        return found

    @torch.inference_mode()
    def __call__(self, states_ND: Tensor, target_ids_N: Tensor) -> TargetBlock:
        """Targets of N answer positions.

        Args:
            states_ND: the teacher's hidden states.
            target_ids_N: int64, student ids of the answer's tokens; each shared.
        """
        parts = [
            self._chunk(states_ND[start : start + self.chunk], target_ids_N[start : start + self.chunk])
            for start in range(0, max(1, len(states_ND)), self.chunk)
        ]
        return TargetBlock(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _chunk(self, states_nD: Tensor, target_ids_n: Tensor) -> dict[str, Tensor]:
        logits_nV = torch.nn.functional.linear(states_nD.float(), self.head_VD, self.bias_V)
        logits_nS = logits_nV[:, self._teacher_ids_S]
        lse_n1 = logits_nS.logsumexp(dim=1, keepdim=True)
        if len(self._alone_ids):
            alone_n = logits_nV[:, self._alone_ids].logsumexp(dim=1)
            dropped_n = torch.sigmoid(alone_n - lse_n1[:, 0])
        else:
            dropped_n = torch.zeros_like(lse_n1[:, 0])
        v_nS = logits_nS - lse_n1
        top_nK, columns_nK = v_nS.topk(self.top_k, dim=1)
        target_n1 = self._column_of_student[target_ids_n.to(states_nD.device)][:, None]
        target_v_n1 = v_nS.gather(1, target_n1)
        missing_n = (columns_nK != target_n1).all(dim=1)
        columns_nK[missing_n, -1] = target_n1[missing_n, 0]
        top_nK[missing_n, -1] = target_v_n1[missing_n, 0]
        v_nS.scatter_(1, columns_nK, -torch.inf)
        tail_nJ = torch.stack([(v_nS / T).logsumexp(dim=1) for T in self.temperatures], dim=1)
        return {
            "ids_NK": self._student_ids_S[columns_nK],
            "logprobs_NK": top_nK,
            "tail_NJ": tail_nJ,
            "target_logprobs_N": target_v_n1[:, 0],
            "dropped_N": dropped_n,
            "finite_N": lse_n1[:, 0].isfinite() & logits_nS.isfinite().all(dim=1),
        }
