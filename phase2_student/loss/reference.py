"""The distillation loss said plainly, with whole logits and autograd: what `loss.py` is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from phase2_student.loss.fused import AnswerTargets, TailMode


def reference_loss(
    states_ND: Tensor,
    head_VD: Tensor,
    targets: AnswerTargets,
    *,
    unshared_ids: Tensor,
    temperature: float,
    alpha: float,
    num_items: float,
    tail: TailMode = "bucket",
) -> Tensor:
    """As `loss.distillation_loss`; computes in the dtype of its inputs."""
    T = temperature
    logits_NV = states_ND @ head_VD.T
    shared_V = torch.ones(len(head_VD), dtype=torch.bool)
    shared_V[unshared_ids] = False
    log_q_NV = (logits_NV / T).masked_fill(~shared_V, -torch.inf).log_softmax(dim=1)
    kd_N = torch.zeros(len(states_ND), dtype=states_ND.dtype)
    for n in range(len(states_ND)):
        stored = targets.ids_NK[n]
        rest_V = shared_V.clone()
        rest_V[stored] = False
        log_p_K, log_q_K = targets.log_p_NK[n].to(states_ND.dtype), log_q_NV[n, stored]
        if tail == "renormalize":
            log_p_K, log_q_K = log_p_K.log_softmax(dim=0), log_q_K.log_softmax(dim=0)
        kd_N[n] = (log_p_K.exp() * (log_p_K - log_q_K)).sum()
        log_r = targets.log_r_N[n].to(states_ND.dtype)
        if tail == "bucket" and log_r > -torch.inf:
            kd_N[n] += log_r.exp() * (log_r - log_q_NV[n, rest_V].logsumexp(dim=0))
    ce_N = cross_entropy(logits_NV, targets.target_ids_N, reduction="none")
    soft_sum = T**2 * kd_N[targets.soft_N].sum()
    return (alpha * soft_sum + (1 - alpha) * ce_N[targets.hard_N].sum()) / num_items
