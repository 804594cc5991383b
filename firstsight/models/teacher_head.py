"""The teacher's head in fp32, on the ids that both vocabularies share."""

from __future__ import annotations

import torch
from torch import Tensor

from firstsight.vocabulary import VocabularyAlignment

# n answer positions, D hidden size, V rows of the teacher's head, S shared ids in the order of the student's ids


class TeacherHead:
    """Projects hidden states of the teacher to the vocabulary; made for a few hundred positions at a time.

    Args:
        head_VD: the head's weight, any float dtype; used in fp32 (a bf16 head rounds logits near 20 to steps of 1/8).
        bias_V: of the head, or None.
        alignment: teacher ids to student ids.
    """

    def __init__(self, head_VD: Tensor, bias_V: Tensor | None, alignment: VocabularyAlignment) -> None:
        self.device = head_VD.device
        self.head_VD = head_VD.detach().float()
        self.bias_V = None if bias_V is None else bias_V.detach().float()
        student_ids = torch.from_numpy(alignment.shared.nonzero()[0])
        teacher_ids = torch.from_numpy(alignment.teacher_of_student[alignment.shared])
        self.student_ids_S = student_ids.to(self.device)
        # equal ids in front: a view instead of a gather over the vocabulary
        prefix = bool((teacher_ids == torch.arange(len(teacher_ids))).all())
        self._teacher_ids_S: Tensor | slice = slice(0, len(teacher_ids)) if prefix else teacher_ids.to(self.device)

    def logits(self, states_nD: Tensor) -> Tensor:
        """float32 [n, V], on the head's device."""
        return torch.nn.functional.linear(states_nD.to(self.device).float(), self.head_VD, self.bias_V)

    def shared(self, logits_nV: Tensor) -> Tensor:
        """[n, S]: the columns of the shared ids, a view where that is possible; all other mass is dropped."""
        return logits_nV[:, self._teacher_ids_S]

    def log_probabilities(self, states_nD: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 [n, S]: log-probabilities at a temperature over the shared ids."""
        return (self.shared(self.logits(states_nD)) / temperature).log_softmax(dim=1)
