"""The distillation loss in its plain form, with whole logits and autograd: the reference for testing `fused.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import StoredTargets


def reference_loss(
    states_ND: Tensor,
    head_VD: Tensor,
    targets: StoredTargets,
    objective: Objective,
    *,
    unshared_ids: Tensor,
    num_items: float,
) -> Tensor:
    """As `fused.distillation_loss`, position by position; computes in the dtype of its inputs."""
    T, tail = objective.temperature, objective.tail
    logits_NV = states_ND @ head_VD.T
    shared_V = torch.ones(len(head_VD), dtype=torch.bool)
    shared_V[unshared_ids] = False
    log_q_NV = (logits_NV / T).masked_fill(~shared_V, -torch.inf).log_softmax(dim=1)
    kd_N = torch.zeros(len(states_ND), dtype=states_ND.dtype)
    for n in range(len(states_ND)):
        stored = targets.ids_NK[n]
        rest_V = shared_V.clone()
        rest_V[stored] = False
        log_p_O, log_q_O = targets.log_p_NK[n].to(states_ND.dtype), log_q_NV[n, stored]
        if tail == "renormalize":
            log_p_O, log_q_O = log_p_O.log_softmax(dim=0), log_q_O.log_softmax(dim=0)
        log_r = targets.log_r_N[n].to(states_ND.dtype)
        if tail == "bucket" and log_r > -torch.inf:
            log_p_O = torch.cat([log_p_O, log_r[None]])
            log_q_O = torch.cat([log_q_O, log_q_NV[n, rest_V].logsumexp(dim=0)[None]])
        kd_N[n] = objective.divergence.value_and_slope(log_p_O[None], log_q_O[None])[0].sum()
    ce_N = cross_entropy(logits_NV, targets.target_ids_N, reduction="none")
    soft_sum = T**2 * kd_N[targets.soft_N].sum()
    return (objective.alpha * soft_sum + (1 - objective.alpha) * ce_N[targets.hard_N].sum()) / num_items
