"""The closed forms of `loss.py` on a block of logits: sums of the terms, and the gradient in the place of the logits.

For an answer token with teacher probabilities p_i on the stored ids and r on the rest, student softmax q at temperature T
over the ids that both vocabularies share, s = its mass on the shared ids that are not stored:

    KD = T^2 [ sum_i p_i log(p_i / q_i) + r log(r / s) ]
    dKD/dlogit_j = T (q_j - p_j)          j stored
                   T (q_j - r q_j / s)    j shared, not stored
                   0                      j not shared

The T^2 is Hinton, Vinyals and Dean's (2015, section 2): it keeps the size of the gradient when T changes. The closed form
follows from d log q_i / d logit_j = (1[i = j] - q_j) / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phase2_student.loss_targets import AnswerTargets, FullTargets

TailMode = Literal["bucket", "renormalize", "none"]

# b answer positions of one block, K stored entries, V rows of the student's head, U of them not shared, S shared


@dataclass(frozen=True, kw_only=True)
class LossWork:
    """What stays the same over all blocks of a call."""

    unshared_ids: Tensor
    T: float
    alpha: float
    scale: Tensor
    tail: TailMode
    wants_grad: bool

    @property
    def hard_alone(self) -> bool:
        """Training on hard labels pays nothing for the soft ones."""
        return self.wants_grad and self.alpha == 0

    @property
    def projected_T(self) -> float:
        """The temperature that the projected logits are divided by."""
        return 1.0 if self.hard_alone else self.T


def block_sums(y_bV: Tensor, targets: AnswerTargets | FullTargets, work: LossWork) -> Tensor:
    """float64 sums (KD, CE, agreement) of a block of logits / `work.projected_T`; in their place dL/dlogits."""
    if work.hard_alone:
        return _hard(y_bV, targets, work)
    if isinstance(targets, AnswerTargets):
        return _stored_and_hard(y_bV, targets, work)
    return _full_and_hard(y_bV, targets, work)


def _hard(y_bV: Tensor, targets: AnswerTargets | FullTargets, work: LossWork) -> Tensor:
    """Sums (NaN, CE, agreement) of a block of logits; in their place dL/dlogits of the hard labels."""
    target_b1, soft_b, hard_b = targets.target_ids_N[:, None], targets.soft_N, targets.hard_N
    top_b1 = y_bV.amax(dim=1, keepdim=True)
    agree = ((y_bV.gather(1, targets.top_ids_N1) == top_b1)[:, 0] & soft_b).sum()
    target_logit_b1 = y_bV.gather(1, target_b1)
    total_b1 = y_bV.sub_(top_b1).exp_().sum(dim=1, keepdim=True)
    ce_b = (total_b1.log() + top_b1 - target_logit_b1)[:, 0]
    weight_b1 = (work.scale * hard_b)[:, None]
    y_bV.mul_(weight_b1 / total_b1).scatter_add_(1, target_b1, -weight_b1)
    ce = torch.where(hard_b, ce_b, 0.0).sum(dtype=torch.float64)
    return torch.stack([ce.new_full((), torch.nan), ce, agree.double()])


def _stored_and_hard(y_bV: Tensor, targets: AnswerTargets, work: LossWork) -> Tensor:
    """Sums of KD from stored entries, of CE and of agreement of a block of logits / T; in their place dL/dlogits."""
    T, tail = work.T, work.tail
    ids_bK, target_b1 = targets.ids_NK, targets.target_ids_N[:, None]
    soft_b, hard_b = targets.soft_N, targets.hard_N

    # in place y becomes exp(y - m) of what is shared and not stored, with m its maximum: a rest that lies far below the
    # stored entries does not underflow, and log s is a logsumexp, never log(1 - sum q)
    target_y_b1 = y_bV.gather(1, target_b1)
    unshared_bU = y_bV.index_select(1, work.unshared_ids)
    y_bV.index_fill_(1, work.unshared_ids, -torch.inf)
    stored_bK = y_bV.gather(1, ids_bK)
    y_bV.scatter_(1, ids_bK, -torch.inf)
    m_b1 = y_bV.amax(dim=1, keepdim=True)
    others_b1 = torch.cat([stored_bK, unshared_bU], dim=1)
    agree = ((stored_bK[:, 0] >= torch.maximum(m_b1[:, 0], others_b1.amax(dim=1))) & soft_b).sum()
    m_b1 = torch.where(m_b1.isfinite(), m_b1, 0.0)
    y_bV.sub_(m_b1)
    power_bV = None if T in (1.0, 2.0) else (y_bV * T).exp_()
    y_bV.exp_()
    rest_b1 = y_bV.sum(dim=1, keepdim=True)
    if power_bV is not None:
        hard_rest_b1 = power_bV.sum(dim=1, keepdim=True)
    else:
        hard_rest_b1 = rest_b1 if T == 1 else torch.linalg.vector_norm(y_bV, dim=1, keepdim=True).square()

    hard_lse_b1 = torch.logaddexp((T * others_b1).logsumexp(dim=1, keepdim=True), hard_rest_b1.log() + T * m_b1)
    ce_b = (hard_lse_b1 - T * target_y_b1)[:, 0]
    stored_lse_b1 = stored_bK.logsumexp(dim=1, keepdim=True)
    rest_lse_b1 = rest_b1.log() + m_b1
    lse_b1 = stored_lse_b1 if tail == "renormalize" else torch.logaddexp(stored_lse_b1, rest_lse_b1)
    log_p_bK, log_r_b1 = targets.log_p_NK, targets.log_r_N[:, None]
    if tail == "renormalize":
        log_p_bK = log_p_bK - log_p_bK.logsumexp(dim=1, keepdim=True)
    log_q_bK = stored_bK - lse_b1
    p_bK, r_b1 = log_p_bK.exp(), log_r_b1.exp()
    kd_b = torch.where(p_bK > 0, p_bK * (log_p_bK - log_q_bK), 0.0).sum(dim=1)
    if tail == "bucket":
        kd_b = kd_b + torch.where(r_b1 > 0, r_b1 * (log_r_b1 - rest_lse_b1 + lse_b1), 0.0)[:, 0]

    if work.wants_grad:
        held_b1 = p_bK.sum(dim=1, keepdim=True)  # mass that the sum over the stored ids speaks for
        q_bK = log_q_bK.exp()
        if tail == "bucket":
            # q_j (1 - r / s), with r q_j / s = r rest_j / sum(rest): finite even where s underflows
            share_b1 = torch.where(rest_b1 > 0, r_b1 / rest_b1, 0.0)
            rest_factor_b1 = (m_b1 - lse_b1).exp() - share_b1
        elif tail == "none":
            rest_factor_b1 = held_b1 * (m_b1 - lse_b1).exp()
            q_bK = held_b1 * q_bK
        else:
            rest_factor_b1 = torch.zeros_like(held_b1)
        kd_weight_b1 = (work.alpha * T * work.scale * soft_b)[:, None]
        ce_weight_b1 = ((1 - work.alpha) * work.scale * hard_b)[:, None]
        soft_factor_b1 = kd_weight_b1 * rest_factor_b1
        hard_factor_b1 = ce_weight_b1 * (T * m_b1 - hard_lse_b1).exp()
        if work.alpha == 1:
            y_bV.mul_(soft_factor_b1)
        elif power_bV is not None:
            y_bV.mul_(soft_factor_b1).addcmul_(power_bV, hard_factor_b1)
        elif T == 1:
            y_bV.mul_(soft_factor_b1 + hard_factor_b1)
        else:  # exp(2 y) = exp(y)^2
            y_bV.mul_(torch.addcmul(soft_factor_b1, y_bV, hard_factor_b1))
        stored_grad_bK = kd_weight_b1 * (q_bK - p_bK) + ce_weight_b1 * (T * stored_bK - hard_lse_b1).exp()
        y_bV.scatter_(1, ids_bK, stored_grad_bK)
        y_bV.index_copy_(1, work.unshared_ids, ce_weight_b1 * (T * unshared_bU - hard_lse_b1).exp())
        y_bV.scatter_add_(1, target_b1, -ce_weight_b1)

    kd = torch.where(soft_b, kd_b, 0.0).sum(dtype=torch.float64) * T**2
    ce = torch.where(hard_b, ce_b, 0.0).sum(dtype=torch.float64)
    return torch.stack([kd, ce, agree.double()])


def _full_and_hard(y_bV: Tensor, targets: FullTargets, work: LossWork) -> Tensor:
    """The same from whole distributions: with all ids stored and nothing in the tail the sums of `_stored_and_hard`."""
    T, shared_S = work.T, targets.shared_ids_S
    target_b1, soft_b, hard_b = targets.target_ids_N[:, None], targets.soft_N, targets.hard_N
    top_b1 = y_bV.amax(dim=1, keepdim=True)
    agree = ((y_bV.gather(1, targets.top_ids_N1) == top_b1)[:, 0] & soft_b).sum()
    log_q_bS = y_bV.index_select(1, shared_S)
    log_q_bS.sub_(log_q_bS.logsumexp(dim=1, keepdim=True))
    p_bS = targets.log_p_NS.exp()
    kd_b = (p_bS * (targets.log_p_NS - log_q_bS)).sum(dim=1)

    target_logit_b1 = T * y_bV.gather(1, target_b1)
    y_bV.sub_(top_b1).mul_(T).exp_()
    total_b1 = y_bV.sum(dim=1, keepdim=True)
    ce_b = (total_b1.log() + T * top_b1 - target_logit_b1)[:, 0]
    if work.wants_grad:
        ce_weight_b1 = ((1 - work.alpha) * work.scale * hard_b)[:, None]
        kd_weight_b1 = (work.alpha * T * work.scale * soft_b)[:, None]
        y_bV.mul_(ce_weight_b1 / total_b1).scatter_add_(1, target_b1, -ce_weight_b1)
        y_bV.index_add_(1, shared_S, log_q_bS.exp_().sub_(p_bS).mul_(kd_weight_b1))

    kd = torch.where(soft_b, kd_b, 0.0).sum(dtype=torch.float64) * T**2
    ce = torch.where(hard_b, ce_b, 0.0).sum(dtype=torch.float64)
    return torch.stack([kd, ce, agree.double()])
