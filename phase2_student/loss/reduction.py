"""Reduces a block of logits to the outcomes that a divergence sees, and scatters its slope into the place of the logits.

For outcomes i with student probabilities q_i at temperature T and slopes g_i = dD/dlog q_i, d log q_i / d y_j = 1[i = j] - q_j
with y = logits / T gives

    dD/dy_j = g_j - q_j G              j an outcome, G = sum g
              (g_R / s - G) q_j        j one of the ids that are not stored: R their bucket, s its mass
              0                        j not shared

Forward KL has g = -p: q_j - p_j for a stored id, q_j - r q_j / s for one of the rest.

Both classes own one buffer of the block's size. It holds the scaled logits, then their exponentials, then the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import FullTargets, StoredTargets

# b answer positions of one block, K stored entries, O outcomes, V rows of the student's head, U of them not shared, S shared

_NOTHING = -1e4
"""log of the mass of an empty outcome: its exponential is 0, and 0 times a difference of such logs is 0."""


class HardLabels:
    """A block of logits when only the labels count.

    Args:
        y_bV: logits; overwritten.
        targets: the targets of the same positions.
    """

    def __init__(self, y_bV: Tensor, targets: StoredTargets | FullTargets) -> None:
        self._y_bV, self._target_b1 = y_bV, targets.target_ids_N[:, None]
        top_b1 = y_bV.amax(dim=1, keepdim=True)
        self.agree_b = (y_bV.gather(1, targets.top_ids_N1) == top_b1)[:, 0]
        target_logit_b1 = y_bV.gather(1, self._target_b1)
        self._total_b1 = y_bV.sub_(top_b1).exp_().sum(dim=1, keepdim=True)
        self.ce_b = (self._total_b1.log() + top_b1 - target_logit_b1)[:, 0]

    def scatter(self, hard_b1: Tensor) -> None:
        """Replace the logits by the gradient of the cross-entropy, times a factor [b, 1]."""
        self._y_bV.mul_(hard_b1 / self._total_b1).scatter_add_(1, self._target_b1, -hard_b1)


class StoredOutcomes:
    """A block of logits reduced to its stored ids and a bucket for the rest.

    Args:
        y_bV: logits / T; overwritten.
        targets: the targets of the same positions.
        objective: says how the rest counts.
        unshared_ids: int64 [U].
    """

    def __init__(self, y_bV: Tensor, targets: StoredTargets, objective: Objective, unshared_ids: Tensor) -> None:
        self.T, self.tail = objective.temperature, objective.tail
        self._y_bV, self._ids_bK, self._unshared_ids = y_bV, targets.ids_NK, unshared_ids
        self._target_b1 = targets.target_ids_N[:, None]
        T = self.T

        # y becomes, in place, exp(y - m) of the ids that are shared but not stored, with m their maximum: so a rest far below
        # the stored entries does not underflow, and log s is a logsumexp, never log(1 - sum q)
        target_y_b1 = y_bV.gather(1, self._target_b1)
        self._unshared_bU = y_bV.index_select(1, unshared_ids)
        y_bV.index_fill_(1, unshared_ids, -torch.inf)
        self._stored_bK = y_bV.gather(1, self._ids_bK)
        y_bV.scatter_(1, self._ids_bK, -torch.inf)
        m_b1 = y_bV.amax(dim=1, keepdim=True)
        others_b1 = torch.cat([self._stored_bK, self._unshared_bU], dim=1)
        self.agree_b = self._stored_bK[:, 0] >= torch.maximum(m_b1[:, 0], others_b1.amax(dim=1))
        m_b1 = torch.where(m_b1.isfinite(), m_b1, 0.0)
        y_bV.sub_(m_b1)
        self._power_bV = None if T in (1.0, 2.0) else (y_bV * T).exp_()
        y_bV.exp_()
        self._rest_b1 = y_bV.sum(dim=1, keepdim=True)
        if self._power_bV is not None:
            hard_rest_b1 = self._power_bV.sum(dim=1, keepdim=True)
        elif T == 1:
            hard_rest_b1 = self._rest_b1
        else:
            hard_rest_b1 = torch.linalg.vector_norm(y_bV, dim=1, keepdim=True).square()
        self._m_b1 = m_b1
        hard_others_b1 = (T * others_b1).logsumexp(dim=1, keepdim=True)
        self._hard_lse_b1 = torch.logaddexp(hard_others_b1, hard_rest_b1.log() + T * m_b1)
        self.ce_b = (self._hard_lse_b1 - T * target_y_b1)[:, 0]

        lse_b1 = self._stored_bK.logsumexp(dim=1, keepdim=True)
        rest_lse_b1 = self._rest_b1.log() + m_b1
        log_p_bO = targets.log_p_NK.clamp(min=_NOTHING)
        if self.tail == "renormalize":
            log_p_bO = log_p_bO - log_p_bO.logsumexp(dim=1, keepdim=True)
        else:
            lse_b1 = torch.logaddexp(lse_b1, rest_lse_b1)
        log_q_bO = self._stored_bK - lse_b1
        if self.tail == "bucket":
            log_r_b1 = targets.log_r_N[:, None]
            log_s_b1 = rest_lse_b1 - lse_b1
            log_s_b1 = torch.where(log_r_b1 > _NOTHING, log_s_b1, log_s_b1.clamp(min=_NOTHING))
            log_p_bO = torch.cat([log_p_bO, log_r_b1.clamp(min=_NOTHING)], dim=1)
            log_q_bO = torch.cat([log_q_bO, log_s_b1], dim=1)
        self._lse_b1 = lse_b1
        self.log_p_bO, self.log_q_bO = log_p_bO.clamp_(min=objective.divergence.least_log_p), log_q_bO

    def scatter(self, slope_bO: Tensor, soft_b1: Tensor, hard_b1: Tensor | None) -> None:
        """Replace the logits by the gradient of divergence and cross-entropy.

        Args:
            slope_bO: slope of the divergence in every log q.
            soft_b1: factor of the divergence.
            hard_b1: factor of the cross-entropy; None: it has no weight.
        """
        y_bV, T, K = self._y_bV, self.T, self._ids_bK.shape[1]
        sum_b1 = slope_bO.sum(dim=1, keepdim=True)
        in_q = self.tail != "renormalize"  # the rest counts in the student's normaliser
        rest_factor_b1 = -sum_b1 * (self._m_b1 - self._lse_b1).exp() if in_q else torch.zeros_like(sum_b1)
        if self.tail == "bucket":
            # g_R q_j / s = g_R rest_j / sum(rest): finite even where s underflows
            rest_factor_b1 += torch.where(self._rest_b1 > 0, slope_bO[:, K:] / self._rest_b1, 0.0)
        soft_factor_b1 = soft_b1 * rest_factor_b1
        stored_grad_bK = soft_b1 * torch.addcmul(slope_bO[:, :K], self.log_q_bO[:, :K].exp(), sum_b1, value=-1)
        if hard_b1 is None:
            y_bV.mul_(soft_factor_b1).scatter_(1, self._ids_bK, stored_grad_bK)
            y_bV.index_fill_(1, self._unshared_ids, 0.0)
            return
        hard_factor_b1 = hard_b1 * (T * self._m_b1 - self._hard_lse_b1).exp()
        if self._power_bV is not None:
            y_bV.mul_(soft_factor_b1).addcmul_(self._power_bV, hard_factor_b1)
        elif T == 1:
            y_bV.mul_(soft_factor_b1 + hard_factor_b1)
        else:  # exp(2 y) = exp(y)^2
            y_bV.mul_(torch.addcmul(soft_factor_b1, y_bV, hard_factor_b1))
        stored_grad_bK += hard_b1 * (T * self._stored_bK - self._hard_lse_b1).exp()
        y_bV.scatter_(1, self._ids_bK, stored_grad_bK)
        y_bV.index_copy_(1, self._unshared_ids, hard_b1 * (T * self._unshared_bU - self._hard_lse_b1).exp())
        y_bV.scatter_add_(1, self._target_b1, -hard_b1)


class FullOutcomes:
    """A block of logits over all shared ids: the same as `StoredOutcomes` with all of them stored and an empty tail.

    Args:
        y_bV: logits / T; overwritten.
        targets: the targets of the same positions.
        objective: gives T.
    """

    def __init__(self, y_bV: Tensor, targets: FullTargets, objective: Objective) -> None:
        T = objective.temperature
        self._y_bV, self._shared_S, self._target_b1 = y_bV, targets.shared_ids_S, targets.target_ids_N[:, None]
        top_b1 = y_bV.amax(dim=1, keepdim=True)
        self.agree_b = (y_bV.gather(1, targets.top_ids_N1) == top_b1)[:, 0]
        self.log_p_bO = targets.log_p_NS
        self.log_q_bO = y_bV.index_select(1, self._shared_S)
        self.log_q_bO.sub_(self.log_q_bO.logsumexp(dim=1, keepdim=True))
        target_logit_b1 = T * y_bV.gather(1, self._target_b1)
        y_bV.sub_(top_b1).mul_(T).exp_()
        self._total_b1 = y_bV.sum(dim=1, keepdim=True)
        self.ce_b = (self._total_b1.log() + T * top_b1 - target_logit_b1)[:, 0]

    def scatter(self, slope_bO: Tensor, soft_b1: Tensor, hard_b1: Tensor | None) -> None:
        """As `StoredOutcomes.scatter`; slope and log q are overwritten."""
        if hard_b1 is None:
            self._y_bV.zero_()
        else:
            self._y_bV.mul_(hard_b1 / self._total_b1).scatter_add_(1, self._target_b1, -hard_b1)
        sum_b1 = slope_bO.sum(dim=1, keepdim=True)
        slope_bO.addcmul_(self.log_q_bO.exp_(), sum_b1, value=-1).mul_(soft_b1)
        self._y_bV.index_add_(1, self._shared_S, slope_bO)


def block_sums(
    y_bV: Tensor,
    targets: StoredTargets | FullTargets,
    objective: Objective,
    *,
    unshared_ids: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """Reduce a block, apply the divergence, scatter the gradient; returns the sums of the block.

    Args:
        y_bV: logits, divided by T if the objective needs soft targets; overwritten with dL/dlogits if a gradient is wanted.
        targets: the targets of the same positions.
        objective: the run's objective.
        unshared_ids: int64 [U], rows of the head that the teacher's vocabulary does not have.
        scale: 1 / N; None: no gradient is wanted.

    Returns:
        float64 [3]: T^2 D, CE and agreement; the first is NaN if it was not computed.
    """
    soft_b, hard_b = targets.soft_N, targets.hard_N
    if not objective.takes_soft(training=scale is not None):
        labels = HardLabels(y_bV, targets)
        if scale is not None:
            _, hard_b1 = objective.weights(soft_b, hard_b, scale)
            assert hard_b1 is not None
            labels.scatter(hard_b1)
        return _sums(None, labels.ce_b, labels.agree_b, soft_b, hard_b)
    outcomes = (
        StoredOutcomes(y_bV, targets, objective, unshared_ids)
        if isinstance(targets, StoredTargets)
        else FullOutcomes(y_bV, targets, objective)
    )
    value_b, slope_bO = objective.divergence.value_and_slope(outcomes.log_p_bO, outcomes.log_q_bO)
    if scale is not None:
        outcomes.scatter(slope_bO, *objective.weights(soft_b, hard_b, scale))
    return _sums(objective.temperature**2 * value_b, outcomes.ce_b, outcomes.agree_b, soft_b, hard_b)


def _sums(kd_b: Tensor | None, ce_b: Tensor, agree_b: Tensor, soft_b: Tensor, hard_b: Tensor) -> Tensor:
    ce = torch.where(hard_b, ce_b, 0.0).sum(dtype=torch.float64)
    kd = ce.new_full((), torch.nan) if kd_b is None else torch.where(soft_b, kd_b, 0.0).sum(dtype=torch.float64)
    return torch.stack([kd, ce, (agree_b & soft_b).sum().double()])
