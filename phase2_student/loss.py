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
vocabulary] logits never exist at once: one buffer of `chunk` rows holds the scaled logits, then their exponentials, then
the gradient. `loss_reference.py` says the same by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

TailMode = Literal["bucket", "renormalize", "none"]

# N answer positions, n of one chunk, b of one block, K stored entries, D hidden size, V rows of the student's head, U of
# them not shared

CHUNK = 256
"""Positions projected at once."""
_BLOCK_ELEMENTS = 2**20
"""Logits worked on at once on a CPU: a block passes through the cache a dozen times instead of through memory."""


@dataclass(frozen=True, kw_only=True)
class AnswerTargets:
    """What a batch's answer positions are trained on."""

    ids_NK: Tensor
    """int64: student ids of the stored entries, distinct and shared in every row, soft or not; the most likely one first."""
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
    """Sum of KD over soft positions, T^2 included, nats; NaN where it was not computed (alpha = 0, in training)."""
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
    chunk: int = CHUNK,
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
    work = _Work(
        targets=targets,
        unshared_ids=unshared_ids,
        T=temperature,
        alpha=alpha,
        scale=1.0 / torch.as_tensor(num_items, dtype=torch.float32, device=states_ND.device),
        tail=tail,
        wants_grad=wants_grad,
    )
    loss, *terms = _Fused.apply(states_ND, head_VD, work, chunk)  # type: ignore[no-untyped-call]
    return loss, LossTerms(*terms)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What stays the same over all blocks of a call."""

    targets: AnswerTargets
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


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, head_VD: Tensor, work: _Work, chunk: int) -> tuple[Tensor, ...]:
        needs_states, needs_head = (work.wants_grad and need for need in ctx.needs_input_grad[:2])
        device, N = states_ND.device, len(states_ND)
        grad_states_ND = torch.zeros_like(states_ND, dtype=torch.float32) if needs_states else None
        grad_head_VD: Tensor | None = None
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        with torch.autocast(device.type, enabled=False):
            weight_VD = head_VD.float()
            V = len(weight_VD)
            block = max(1, _BLOCK_ELEMENTS // V) if device.type == "cpu" else chunk
            buffer_nV = torch.empty((min(chunk, N), V), device=device)
            for start in range(0, N, chunk):
                states_nD = states_ND[start : start + chunk].float()
                # fp32: a bf16 head rounds logits near 20 to 1/8
                y_nV = torch.matmul(states_nD / work.projected_T, weight_VD.T, out=buffer_nV[: len(states_nD)])
                for first in range(0, len(y_nV), block):
                    y_bV = y_nV[first : first + block]
                    rows = slice(start + first, start + first + len(y_bV))
                    sums += _hard(y_bV, work, rows) if work.hard_alone else _soft_and_hard(y_bV, work, rows)
                if grad_states_ND is not None:
                    torch.matmul(y_nV, weight_VD, out=grad_states_ND[start : start + chunk])
                if needs_head and grad_head_VD is None:
                    grad_head_VD = y_nV.T @ states_nD
                elif grad_head_VD is not None:
                    grad_head_VD.addmm_(y_nV.T, states_nD)
        if needs_head and grad_head_VD is None:
            grad_head_VD = torch.zeros_like(weight_VD)
        # not save_for_backward: the gradient of the head is scaled in place, a copy would be as large as the head
        ctx.grads = (
            grad_states_ND if grad_states_ND is None else grad_states_ND.to(states_ND.dtype),
            grad_head_VD if grad_head_VD is None else grad_head_VD.to(head_VD.dtype),
        )
        kd, ce, agree = sums.float()
        loss = ((1 - work.alpha) * ce + (0.0 if work.hard_alone else work.alpha * kd)) * work.scale
        soft, hard = work.targets.soft_N.sum().float(), work.targets.hard_N.sum().float()
        ctx.mark_non_differentiable(kd, ce, agree, soft, hard)
        return loss, kd, ce, agree, soft, hard

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("distillation_loss: backward a second time; the gradients were used up by the first")
        (states, head), ctx.grads = ctx.grads, None
        return (
            None if states is None else states.mul_(grad_loss),
            None if head is None else head.mul_(grad_loss),
            None,
            None,
        )


def _hard(y_bV: Tensor, work: _Work, rows: slice) -> Tensor:
    """Sums (NaN, CE, agreement) of a block of logits; in their place dL/dlogits of the hard labels."""
    targets = work.targets
    target_b1, soft_b, hard_b = targets.target_ids_N[rows, None], targets.soft_N[rows], targets.hard_N[rows]
    top_b1 = y_bV.amax(dim=1, keepdim=True)
    agree = ((y_bV.gather(1, targets.ids_NK[rows, :1]) == top_b1)[:, 0] & soft_b).sum()
    target_logit_b1 = y_bV.gather(1, target_b1)
    total_b1 = y_bV.sub_(top_b1).exp_().sum(dim=1, keepdim=True)
    ce_b = (total_b1.log() + top_b1 - target_logit_b1)[:, 0]
    weight_b1 = (work.scale * hard_b)[:, None]
    y_bV.mul_(weight_b1 / total_b1).scatter_add_(1, target_b1, -weight_b1)
    ce = torch.where(hard_b, ce_b, 0.0).sum(dtype=torch.float64)
    return torch.stack([ce.new_tensor(torch.nan), ce, agree.double()])


def _soft_and_hard(y_bV: Tensor, work: _Work, rows: slice) -> Tensor:
    """Sums of KD, CE and agreement of a block of logits / T; in their place dL/dlogits."""
    targets, T, tail = work.targets, work.T, work.tail
    ids_bK, target_b1 = targets.ids_NK[rows], targets.target_ids_N[rows, None]
    soft_b, hard_b = targets.soft_N[rows], targets.hard_N[rows]

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
    log_p_bK, log_r_b1 = targets.log_p_NK[rows], targets.log_r_N[rows, None]
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
