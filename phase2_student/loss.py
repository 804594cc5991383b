"""The fused distillation loss: head projection, soft and hard loss and their gradients, chunk by chunk.

    loss, terms = distillation_loss(states, head_weight, targets, temperature=2.0, alpha=0.7, num_items=n)

For an answer token with teacher probabilities p_i on the stored ids and r on the rest, student softmax q at temperature T
over the ids that both vocabularies share, s = its mass on the shared ids that are not stored:

    KD = T^2 [ sum_i p_i log(p_i / q_i) + r log(r / s) ]
    dKD/dlogit_j = T (q_j - p_j)          j stored
                   T (q_j - r q_j / s)    j shared, not stored
                   0                      j not shared
    L = [ alpha sum_soft KD + (1 - alpha) sum_hard CE ] / num_items

The T^2 is Hinton, Vinyals and Dean's (2015, section 2): it keeps the size of the gradient when T changes. The closed form
follows from d log q_i / d logit_j = (1[i = j] - q_j) / T. Gradients are made in the forward pass, so the [positions,
vocabulary] logits never exist at once. `loss_reference.py` says the same by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

TailMode = Literal["bucket", "renormalize", "none"]

# N answer positions, n of one chunk, K stored entries, D hidden size, V rows of the student's head


@dataclass(frozen=True, kw_only=True)
class AnswerTargets:
    """What a batch's answer positions are trained on."""

    ids_NK: Tensor
    """int64: student ids of the stored entries."""
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


class LossTerms(NamedTuple):
    """Sums over a batch, float32 scalars without gradient."""

    kd: Tensor
    """Sum of KD over soft positions, T^2 included, nats."""
    ce: Tensor
    """Sum of cross-entropy over hard positions, nats."""
    agree: Tensor
    """Soft positions at which the student's most likely token is the teacher's."""
    soft: Tensor
    """Soft positions."""
    hard: Tensor
    """Hard positions."""


def distillation_loss(
    states_ND: Tensor,
    head_VD: Tensor,
    targets: AnswerTargets,
    *,
    unshared_ids: Tensor,
    temperature: float,
    alpha: float,
    num_items: Tensor | float,
    tail: TailMode = "bucket",
    chunk: int = 256,
) -> tuple[Tensor, LossTerms]:
    """The loss of a batch of answer positions, differentiable in `states_ND` and `head_VD`.

    Args:
        states_ND: hidden states at the answer positions, any float dtype.
        head_VD: weight of the head.
        targets: what to train on.
        unshared_ids: int64 [U], rows of the head that the teacher's vocabulary does not have, padding included.
        temperature: T of KD.
        alpha: weight of KD; 1 - alpha weighs the cross-entropy.
        num_items: answer positions of the whole accumulated batch over all ranks.
        tail: `bucket`: the rest as one bucket, as above; `renormalize`: both distributions conditioned on the stored
            ids; `none`: the sum over the stored ids alone.
        chunk: positions projected at once.

    Returns:
        The loss, float32 scalar, and its parts.
    """
    wants_grad = torch.is_grad_enabled()
    loss, *terms = _Fused.apply(
        states_ND, head_VD, targets, unshared_ids, temperature, alpha, num_items, tail, chunk, wants_grad
    )  # type: ignore[no-untyped-call]
    return loss, LossTerms(*terms)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        head_VD: Tensor,
        targets: AnswerTargets,
        unshared_ids: Tensor,
        temperature: float,
        alpha: float,
        num_items: Tensor | float,
        tail: TailMode,
        chunk: int,
        wants_grad: bool,
    ) -> tuple[Tensor, ...]:
        needs_states, needs_head = (wants_grad and need for need in ctx.needs_input_grad[:2])
        weight_VD = head_VD.float()
        grad_states_ND = torch.zeros_like(states_ND, dtype=torch.float32) if needs_states else None
        grad_head_VD = torch.zeros_like(weight_VD) if needs_head else None
        scale = 1.0 / torch.as_tensor(num_items, dtype=torch.float32, device=states_ND.device)
        sums = torch.zeros(3, dtype=torch.float64, device=states_ND.device)
        with torch.autocast(states_ND.device.type, enabled=False):
            for start in range(0, len(states_ND), chunk):
                rows = slice(start, start + chunk)
                states_nD = states_ND[rows].float()
                logits_nV = states_nD @ weight_VD.T  # fp32: a bf16 head rounds logits near 20 to 1/8
                part, grad_nV = _chunk(
                    logits_nV, targets, rows, unshared_ids, temperature, alpha, scale, tail, needs_states or needs_head
                )
                sums += part
                if grad_states_ND is not None:
                    torch.matmul(grad_nV, weight_VD, out=grad_states_ND[rows])
                if grad_head_VD is not None:
                    grad_head_VD.addmm_(grad_nV.T, states_nD)
        ctx.save_for_backward(
            grad_states_ND if grad_states_ND is None else grad_states_ND.to(states_ND.dtype),
            grad_head_VD if grad_head_VD is None else grad_head_VD.to(head_VD.dtype),
        )
        kd, ce, agree = sums.float()
        loss = (alpha * kd + (1 - alpha) * ce) * scale
        soft, hard = targets.soft_N.sum().float(), targets.hard_N.sum().float()
        ctx.mark_non_differentiable(kd, ce, agree, soft, hard)
        return loss, kd, ce, agree, soft, hard

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.saved_tensors
        return (
            None if grad_states is None else grad_states * grad_loss,
            None if grad_head is None else grad_head * grad_loss,
            *[None] * 8,
        )


def _chunk(
    logits_nV: Tensor,
    targets: AnswerTargets,
    rows: slice,
    unshared_ids: Tensor,
    T: float,
    alpha: float,
    scale: Tensor,
    tail: TailMode,
    wants_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Sums of KD, CE and agreement of a chunk, and dL/dlogits; `logits_nV` is used up."""
    ids_nK, target_n1 = targets.ids_NK[rows], targets.target_ids_N[rows, None]
    soft_n, hard_n = targets.soft_N[rows], targets.hard_N[rows]

    top_n1, top_id_n1 = logits_nV.max(dim=1, keepdim=True)
    agree = ((top_id_n1[:, 0] == ids_nK[:, 0]) & soft_n).sum()
    target_logit_n = logits_nV.gather(1, target_n1)[:, 0]
    grad_nV = (logits_nV - top_n1).exp_()
    total_n1 = grad_nV.sum(dim=1, keepdim=True)
    ce_n = (total_n1.log() + top_n1)[:, 0] - target_logit_n
    if wants_grad:
        ce_weight_n1 = ((1 - alpha) * scale * hard_n)[:, None]
        grad_nV.mul_(ce_weight_n1 / total_n1).scatter_add_(1, target_n1, -ce_weight_n1)

    # logits_nV becomes, in place, what the student puts on the shared ids that are not stored
    logits_nV.div_(T).index_fill_(1, unshared_ids, -torch.inf)
    stored_nK = logits_nV.gather(1, ids_nK)
    logits_nV.scatter_(1, ids_nK, -torch.inf)
    rest_max_n1 = logits_nV.amax(dim=1, keepdim=True)
    rest_max_n1 = torch.where(rest_max_n1.isfinite(), rest_max_n1, 0.0)
    rest_nV = logits_nV.sub_(rest_max_n1).exp_()
    rest_sum_n1 = rest_nV.sum(dim=1, keepdim=True)
    stored_lse_n1 = stored_nK.logsumexp(dim=1, keepdim=True)
    rest_lse_n1 = rest_sum_n1.log() + rest_max_n1  # by logsumexp, never log(1 - sum q)
    lse_n1 = stored_lse_n1 if tail == "renormalize" else torch.logaddexp(stored_lse_n1, rest_lse_n1)

    log_p_nK, log_r_n1 = targets.log_p_NK[rows], targets.log_r_N[rows, None]
    if tail == "renormalize":
        log_p_nK = log_p_nK - log_p_nK.logsumexp(dim=1, keepdim=True)
    log_q_nK = stored_nK - lse_n1
    p_nK, r_n1 = log_p_nK.exp(), log_r_n1.exp()
    kd_n = torch.where(p_nK > 0, p_nK * (log_p_nK - log_q_nK), 0.0).sum(dim=1)
    if tail == "bucket":
        kd_n = kd_n + torch.where(r_n1 > 0, r_n1 * (log_r_n1 - rest_lse_n1 + lse_n1), 0.0)[:, 0]

    if wants_grad:
        kd_weight_n1 = (alpha * T * scale * soft_n)[:, None]
        held_n1 = p_nK.sum(dim=1, keepdim=True)  # mass that the sum over the stored ids speaks for
        q_nK = log_q_nK.exp()
        if tail == "bucket":
            # q_j (1 - r / s), with r q_j / s = r rest_j / sum(rest): finite even where s underflows
            share_n1 = torch.where(rest_sum_n1 > 0, r_n1 / rest_sum_n1, 0.0)
            rest_factor_n1 = (rest_max_n1 - lse_n1).exp() - share_n1
        elif tail == "none":
            rest_factor_n1 = held_n1 * (rest_max_n1 - lse_n1).exp()
            q_nK = held_n1 * q_nK
        else:
            rest_factor_n1 = torch.zeros_like(held_n1)
        grad_nV.addcmul_(rest_nV, kd_weight_n1 * rest_factor_n1)
        grad_nV.scatter_add_(1, ids_nK, kd_weight_n1 * (q_nK - p_nK))

    zero = torch.zeros((), device=kd_n.device)
    kd = torch.where(soft_n, kd_n, zero).sum(dtype=torch.float64) * T**2
    ce = torch.where(hard_n, ce_n, zero).sum(dtype=torch.float64)
    return torch.stack([kd, ce, agree.double()]), grad_nV
