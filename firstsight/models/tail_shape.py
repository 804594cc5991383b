"""The shape of the tail in a top_k cache with `cache.tail_rank`: how the mass of the ids not stored is spread over them.

    shape = TailShape.of_cache(cache.head(), cache.shared_mask(), device)
    logits_nS = shape.logits(coefficients_nr)

docs/FORMAT.md ("Tail with a shape") is normative: the softmax at T of these logits over the ids not stored, times the tail mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.head.reading import Head

# n answer positions, r directions, S shared ids in the order of the student's ids


@dataclass(frozen=True, kw_only=True)
class TailShape:
    """Turns the coordinates of positions into logits of all shared ids.

    A plain object, not a module: nothing shards it, no checkpoint holds it.
    """

    image_Sr: Tensor
    """float32: what one unit of each coordinate adds to the logit of each id."""
    mean_S: Tensor
    """float32: the logits of the mean state."""
    student_ids_S: Tensor
    """int64, ascending: the student ids of the columns."""
    softcap: float | None = None
    """c in c tanh(x / c); None: no cap."""

    @classmethod
    def of_cache(cls, head: Head, shared: NDArray[np.bool_], device: torch.device) -> TailShape:
        """The shape of a cache.

        Args:
            head: of the cache.
            shared: [V] the student ids that both vocabularies have.
            device: to keep it on.

        Raises:
            CorruptObject, ObjectMissing: of the head.
        """
        scale_r = torch.from_numpy(head.array("scale"))
        ids_S = torch.from_numpy(shared.nonzero()[0])
        image_Vr = torch.from_numpy(head.array("image"))
        return cls(
            image_Sr=(image_Vr[ids_S].float() * scale_r).to(device),
            mean_S=torch.from_numpy(head.array("mean"))[ids_S].to(device),
            student_ids_S=ids_S.to(device),
            softcap=head.softcap,
        )

    def logits(self, coefficients_nr: Tensor) -> Tensor:
        """float32 [n, S], at T = 1."""
        logits_nS = torch.addmm(self.mean_S, coefficients_nr.to(self.mean_S.device), self.image_Sr.T)
        return logits_nS if self.softcap is None else logits_nS.div_(self.softcap).tanh_().mul_(self.softcap)

    def log_tail(self, coefficients_nr: Tensor, stored_nK: Tensor, temperature: float) -> Tensor:
        """float32 [n, S]: log of the share of the tail's mass that each id has; -inf for the stored ones.

        Args:
            coefficients_nr: as stored.
            stored_nK: int64, columns of the stored ids.
            temperature: T.
        """
        logits_nS = self.logits(coefficients_nr).div_(temperature).scatter_(1, stored_nK, -torch.inf)
        total_n1 = logits_nS.logsumexp(dim=1, keepdim=True)
        return logits_nS.sub_(total_n1.clamp(min=torch.finfo(torch.float32).min))  # nothing is left: -inf stays

    def columns(self, ids: Tensor) -> Tensor:
        """The columns of shared student ids."""
        return torch.searchsorted(self.student_ids_S, ids.contiguous())
