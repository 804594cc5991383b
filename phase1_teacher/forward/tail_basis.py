"""The directions on which a cache with `cache.tail_rank` stores the teacher's states: computed once from the first states, read by all.

    basis = agreed_basis(writer, lambda: states_of_first_unit, head)    # the first worker decides
    coefficients = basis.coefficients(states)                           # what is stored for every position

Let W be the head's rows of the shared ids minus their mean (a softmax ignores a constant on all logits), G = W'W, and C the
covariance of the states. The covariance of the logits is W C W', and distances between vectors sqrt(G) h are those between their
logits. So the r leading eigenvectors E of sqrt(G) C sqrt(G) are the directions that carry most of the logits' variance. The
coordinates are E' sqrt(G) (h - mean), and W sqrt(G)^-1 E turns them into logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstsight.models.tail_shape import TailShape
from firstsight.models.teacher_head import TeacherHead
from storage.head.content import HeadContent
from storage.head.reading import Head
from storage.writer import CacheWriter

# N states, n of one chunk, D hidden size, r directions, S shared ids, V rows of the student's head

NO_STATES = (
    "cache.tail_rank: no sample has a position with a soft target, so there are no states to find directions in; remove the "
    "key, or repair the data"
)
_CHUNK = 4096  # rows of the head in float64 at a time: 117 MB at D = 3,584
_ISOTROPIC = 1e-6
"""Least variance of a direction, as a share of the mean variance: orders the directions if there are fewer states than directions."""
_LEAST = 1e-12
"""Directions of the head below this share of the largest are rounding errors."""
_LEVELS = 127 / 1.5
"""The largest coordinate of the first states, in units of the scale: int8 holds half as much again, float16 what is even larger."""
_FLOOR = 0.02
"""Least range of a direction, as a share of the widest range: a coordinate that is zero in few states may not be in later ones."""
_ALONE = 0.05
"""The scale if all states are the same."""
_MOST = 60_000.0
"""The largest number that float16 holds."""


@dataclass(frozen=True, kw_only=True)
class TailBasis:
    """The directions of a cache."""

    basis_rD: Tensor
    """float64."""
    center_D: Tensor
    """float64."""
    scale_r: Tensor
    """float64."""
    shape: TailShape

    @classmethod
    def of_head(cls, head: Head, shared: NDArray[np.bool_], device: torch.device) -> TailBasis:
        """The basis in a cache. Raises CorruptObject or ObjectMissing."""
        arrays = {name: torch.from_numpy(head.array(name)).double().to(device) for name in ("basis", "center", "scale")}
        return cls(
            basis_rD=arrays["basis"],
            center_D=arrays["center"],
            scale_r=arrays["scale"],
            shape=TailShape.of_cache(head, shared, device),
        )

    def coefficients(self, states_ND: Tensor) -> Tensor:
        """float32 [N, r], whole numbers: the coordinates of states, whatever else is in their batch."""
        centred_ND = states_ND.to(self.center_D.device).double() - self.center_D
        return (centred_ND @ self.basis_rD.T / self.scale_r).round().clamp(-_MOST, _MOST).float()


def agreed_basis(writer: CacheWriter, states: Callable[[], Tensor], head: TeacherHead) -> TailBasis:
    """The basis of a cache: read if it exists, else made.

    Args:
        writer: the writer of a cache with a tail rank.
        states: gives the states [N, D] to make a basis from; called if there is none.
        head: the teacher's head for the student's vocabulary.

    Raises:
        CacheError: the head in the cache is damaged, or the store refused a write.
    """
    if not writer.adopt_head():
        writer.write_head(tail_content(states(), head, writer.layout.tail_rank, writer.layout.vocabulary_size))
    return TailBasis.of_head(Head(writer.store, writer.version), writer.layout.shared_mask(), head.device)


@torch.inference_mode()
def tail_content(states_ND: Tensor, head: TeacherHead, rank: int, vocabulary_size: int) -> HeadContent:
    """The arrays that a cache stores once.

    Args:
        states_ND: finite states, at least one.
        head: the teacher's head for the student's vocabulary.
        rank: r, the number of directions; at most D.
        vocabulary_size: V, rows of the student's head.
    """
    states_ND = states_ND.to(head.device).double()
    center_D = states_ND.mean(dim=0).float().double()  # the dtype in which it is stored
    centred_ND = states_ND - center_D
    D, S = len(center_D), len(head.student_ids_S)
    mean_D = torch.zeros_like(center_D)
    gram_DD = torch.zeros((D, D), dtype=torch.float64, device=head.device)
    for weight_nD in head.shared_weight(_CHUNK):
        mean_D += weight_nD.double().sum(dim=0) / S
    for weight_nD in head.shared_weight(_CHUNK):
        apart_nD = weight_nD.double() - mean_D
        gram_DD.addmm_(apart_nD.T, apart_nD)
    root_DD, inverse_DD = _roots(gram_DD)
    covariance_DD = centred_ND.T @ centred_ND / len(states_ND)
    least = _ISOTROPIC * covariance_DD.trace() / D
    covariance_DD.diagonal().add_(torch.where(least > 0, least, 1.0))
    _, vectors_DD = torch.linalg.eigh(root_DD @ covariance_DD @ root_DD)
    first_Dr = vectors_DD.flip(1)[:, :rank]  # eigh sorts them ascending
    # sqrt(S): then a coordinate is the root mean square, over the ids, of its part in the logits
    basis_rD = (first_Dr.T @ root_DD / S**0.5).float()
    image_Vr = np.zeros((vocabulary_size, rank), dtype=np.float16)
    mean_V = np.zeros(vocabulary_size, dtype=np.float32)
    from_Dr = inverse_DD @ first_Dr * S**0.5
    ids_S = head.student_ids_S.cpu().numpy()
    start = 0
    for weight_nD in head.shared_weight(_CHUNK):
        rows = ids_S[start : start + len(weight_nD)]
        image_Vr[rows] = ((weight_nD.double() - mean_D) @ from_Dr).half().cpu().numpy()
        mean_V[rows] = (weight_nD.double() @ center_D).float().cpu().numpy()
        start += len(weight_nD)
    if (bias_S := head.shared_bias()) is not None:
        mean_V[ids_S] += bias_S.cpu().numpy()
    largest_r = (centred_ND @ basis_rD.double().T).abs().amax(dim=0)
    largest_r.clamp_(min=_FLOOR * float(largest_r.max()))
    scale_r = torch.where(largest_r > 0, largest_r / _LEVELS, _ALONE)
    arrays: dict[str, NDArray[Any]] = {
        "image": image_Vr,
        "mean": mean_V,
        "scale": scale_r.float().clamp(min=torch.finfo(torch.float32).tiny).cpu().numpy(),
        "basis": basis_rD.cpu().numpy(),
        "center": center_D.float().cpu().numpy(),
    }
    return HeadContent(arrays=arrays)


def _roots(gram_DD: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of a positive semidefinite matrix, and the root's inverse outside the null space."""
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    kept_D = values_D > _LEAST * values_D[-1]
    roots_D = torch.where(kept_D, values_D, 0.0).sqrt()
    inverses_D = torch.where(kept_D, 1 / roots_D, 0.0)
    return vectors_DD * roots_D @ vectors_DD.T, vectors_DD * inverses_D @ vectors_DD.T


def shape_kl(
    basis: TailBasis, logprobs_1S: Tensor, states_1D: Tensor, columns_1K: Tensor, temperatures: tuple[float, ...]
) -> Tensor:
    """float32 [t]: KL in nats from the teacher to the stored entries with a tail of this shape, at one position, before quantisation."""
    coefficients_1r = basis.coefficients(states_1D)
    found = []
    for T in temperatures:
        log_p_1S = (logprobs_1S / T).log_softmax(dim=1)
        rest_1S = log_p_1S.scatter(1, columns_1K, -torch.inf)
        log_r = rest_1S.logsumexp(dim=1)
        log_share_1S = basis.shape.log_tail(coefficients_1r, columns_1K, T)
        apart_1S = (log_p_1S - log_r - log_share_1S).nan_to_num(0.0, posinf=0.0, neginf=0.0)
        found.append((rest_1S.exp() * apart_1S).sum())
    return torch.stack(found)
