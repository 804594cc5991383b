"""The teacher's head in fp32: all of its rows if the teacher is loaded, or only the rows of the shared ids from an exact cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstsight.vocabulary import VocabularyAlignment
from storage.exact import ExactCache

# n answer positions, D hidden size, V rows of the teacher's head, S shared ids in the order of the student's ids

_CAST_NUMBERS = 2**24
"""How many numbers of a 16-bit head become float32 at a time where the matrix product does not take 16 bits: 64 MiB."""


class SoftHead(Protocol):
    """Turns hidden states into distributions over the shared ids, a few hundred positions at a time."""

    student_ids_S: Tensor
    """int64, ascending: the student ids of the columns."""
    device: torch.device

    def log_probabilities(self, states_nD: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 [n, S]: log-probabilities at a temperature over the shared ids, on the head's device."""


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
        # equal ids at the start: a view instead of a gather over the vocabulary
        prefix = bool((teacher_ids == torch.arange(len(teacher_ids))).all())
        self._teacher_ids_S: Tensor | slice = slice(0, len(teacher_ids)) if prefix else teacher_ids.to(self.device)

    def logits(self, states_nD: Tensor) -> Tensor:
        """float32 [n, V], on the head's device."""
        return torch.nn.functional.linear(states_nD.to(self.device).float(), self.head_VD, self.bias_V)

    def shared(self, logits_nV: Tensor) -> Tensor:
        """[n, S]: the columns of the shared ids, a view if possible; all other mass is dropped."""
        return logits_nV[:, self._teacher_ids_S]

    def shared_weight(self, rows: int) -> Iterator[Tensor]:
        """The weight's rows of the shared ids, in the student's order, `rows` at a time."""
        for start in range(0, len(self.student_ids_S), rows):
            part = slice(start, min(start + rows, len(self.student_ids_S)))
            ids = self._teacher_ids_S
            yield self.head_VD[part if isinstance(ids, slice) else ids[part]]

    def shared_bias(self) -> Tensor | None:
        """[S] the bias of the shared ids, in the student's order."""
        return None if self.bias_V is None else self.bias_V[self._teacher_ids_S]

    def log_probabilities(self, states_nD: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 [n, S]: log-probabilities at a temperature over the shared ids."""
        return (self.shared(self.logits(states_nD)) / temperature).log_softmax(dim=1)


class SharedHead:
    """The rows of the shared ids only, in the student's order and in the type that they were stored in.

    A plain object, not a module: nothing shards it, no checkpoint holds it.

    Args:
        weight_SD: bfloat16, float16 or float32.
        bias_S: or None; used in float32.
        student_ids_S: int64, ascending.
        scale: the logits are softcap(scale * (weight h + bias)).
        softcap: c in c tanh(x / c), after the scale; None: no cap.
    """

    def __init__(
        self,
        weight_SD: Tensor,
        bias_S: Tensor | None,
        student_ids_S: Tensor,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        self.device = weight_SD.device
        self.weight_SD = weight_SD
        self.bias_S = None if bias_S is None else bias_S.float()
        self.student_ids_S = student_ids_S
        self.scale = scale
        self.softcap = softcap

    @classmethod
    def of_cache(cls, cache: ExactCache, alignment: VocabularyAlignment, device: torch.device) -> SharedHead:
        """The head of a cache, read 64 MiB at a time: the rows that are not shared are never all in memory.

        Args:
            cache: its head is read.
            alignment: teacher ids to student ids.
            device: for the rows.

        Raises:
            CorruptObject: an object of the head was changed. ObjectMissing: it was not found.
        """
        head, dtype = cache.head(), getattr(torch, cache.head_dtype)
        ids_S = alignment.teacher_of_student[alignment.shared]

        def chosen(name: str) -> Tensor:
            shape = (len(ids_S), *head.shape(name)[1:])
            found = torch.empty(shape, dtype=dtype, device=device)
            for start, rows in head.chunks(name):
                places = np.flatnonzero((ids_S >= start) & (ids_S < start + len(rows)))
                if len(places):
                    part = floats(rows[ids_S[places] - start], dtype).to(device)
                    found[torch.from_numpy(places).to(device)] = part
            return found

        bias = chosen("bias") if cache.spec["head"]["bias"] else None
        student_ids = torch.from_numpy(alignment.shared.nonzero()[0]).to(device)
        return cls(chosen("weight"), bias, student_ids, scale=head.scale, softcap=head.softcap)

    def logits(self, states_nD: Tensor) -> Tensor:
        """float32 [n, S], on the head's device."""
        logits_nS = self._projected(states_nD.to(self.device))
        if self.bias_S is not None:
            logits_nS.add_(self.bias_S)
        if self.scale != 1:
            logits_nS.mul_(self.scale)
        if self.softcap is not None:
            logits_nS.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_nS

    def log_probabilities(self, states_nD: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 [n, S]: log-probabilities at a temperature over the shared ids."""
        return self.logits(states_nD).div_(temperature).log_softmax(dim=1)

    def _projected(self, states_nD: Tensor) -> Tensor:
        """float32 [n, S]: products of 16-bit numbers are exact in fp32, and are added in fp32."""
        weight_SD = self.weight_SD
        if weight_SD.dtype == torch.float32:
            return states_nD.float() @ weight_SD.T
        if weight_SD.device.type == "cuda" and states_nD.dtype == weight_SD.dtype:
            return torch.mm(states_nD, weight_SD.T, out_dtype=torch.float32)
        states_nD = states_nD.float()
        logits_nS = torch.empty((len(states_nD), len(weight_SD)), device=self.device)
        step = max(1, _CAST_NUMBERS // weight_SD.shape[1])
        for start in range(0, len(weight_SD), step):
            logits_nS[:, start : start + step] = states_nD @ weight_SD[start : start + step].float().T
        return logits_nS


def floats(bits: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Numbers from their bits, as `storage` returns them; shares the array's memory."""
    return torch.from_numpy(bits).view(dtype)
