"""The fused distillation loss: head projection, soft and hard loss and their gradients, chunk by chunk.

    loss, terms = distillation_loss(states, head_weight, targets, temperature=2.0, alpha=0.7, num_items=n)

    L = [ alpha sum_soft KD + (1 - alpha) sum_hard CE ] / num_items

with KD from the stored top-k and tail, or from the teacher's whole distribution where the teacher is in memory
(`loss_blocks.py` has the formulas). Gradients are made in the forward pass, so the [positions, vocabulary] logits never
exist at once: one buffer of `chunk` rows holds the scaled logits, then their exponentials, then the gradient.
`loss_reference.py` says the same by autograd.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from phase2_student.loss_blocks import LossWork, TailMode, block_sums
from phase2_student.loss_targets import AnswerTargets, FullTargets, LossTargets, TeacherTargets

# N answer positions, n of one chunk, b of one block, K stored entries, D hidden size, V rows of the student's head, U of
# them not shared

CHUNK = 256
"""Positions projected at once."""
_BLOCK_ELEMENTS = 2**20
"""Logits worked on at once on a CPU: a block passes through the cache a dozen times instead of through memory."""


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
    targets: LossTargets,
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
        tail: of stored targets. `bucket`: the rest as one bucket; `renormalize`: both distributions conditioned on the
            stored ids; `none`: the sum over the stored ids alone.
        chunk: positions projected at once.

    Returns:
        The loss, float32 scalar, and its parts.
    """
    wants_grad = torch.is_grad_enabled()
    work = LossWork(
        unshared_ids=unshared_ids,
        T=temperature,
        alpha=alpha,
        scale=1.0 / _scalar(num_items, states_ND.device),
        tail=tail,
        wants_grad=wants_grad,
    )
    loss, *terms = _Fused.apply(states_ND, head_VD, targets, work, chunk)  # type: ignore[no-untyped-call]
    return loss, LossTerms(*terms)


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """float32; a number is filled in on the device, where a copy from the host would wait for everything before it."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, head_VD: Tensor, targets: LossTargets, work: LossWork, chunk: int
    ) -> tuple[Tensor, ...]:
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
                part = targets.chunk(slice(start, start + chunk), work.T)
                for first in range(0, len(y_nV), block):
                    rows = slice(first, first + block)
                    sums += block_sums(y_nV[rows], part.chunk(rows, work.T), work)
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
        soft, hard = targets.soft_N.sum().float(), targets.hard_N.sum().float()
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
            None,
        )


__all__ = [
    "AnswerTargets",
    "FullTargets",
    "LossTargets",
    "LossTerms",
    "TailMode",
    "TeacherTargets",
    "distillation_loss",
]
