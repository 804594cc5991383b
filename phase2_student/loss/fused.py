"""The fused distillation loss: head projection, soft and hard loss and their gradients, chunk by chunk.

    loss, terms = distillation_loss(states, head_weight, targets, objective, unshared_ids=ids, num_items=n)

Gradients are computed in the forward pass, so the [positions, vocabulary] logits never exist at once: one buffer of `chunk`
rows holds the scaled logits, then their exponentials, then the gradient. `reduction.py` has the formulas; `reference.py`
computes the same by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phase2_student.loss.objective import PLAIN_KL, LossTerms, Objective
from phase2_student.loss.reduction import block_sums
from phase2_student.loss.targets import LossTargets

# N answer positions, n of one chunk, D hidden size, V rows of the student's head, U of them not shared

CHUNK = 256
"""Positions projected at once."""
_BLOCK_ELEMENTS = 2**20
"""Logits worked on at once on a CPU: a block is read a dozen times, from the processor's cache instead of from memory."""


def distillation_loss(
    states_ND: Tensor,
    head_VD: Tensor,
    targets: LossTargets,
    objective: Objective,
    *,
    unshared_ids: Tensor,
    num_items: Tensor | float,
    chunk: int = CHUNK,
) -> tuple[Tensor, LossTerms]:
    """The loss of a batch of answer positions, differentiable in `states_ND` and `head_VD`.

    Args:
        states_ND: hidden states at the answer positions, any float dtype.
        head_VD: weight of the head.
        targets: what to train on, at the objective's temperature.
        objective: the loss to minimise.
        unshared_ids: int64 [U], rows of the head that the teacher's vocabulary does not have, padding included.
        num_items: answer positions of the whole accumulated batch over all ranks.
        chunk: positions projected at once.

    Returns:
        The loss, float32 scalar, and its float32 parts.
    """
    call = _Call(
        targets=targets,
        objective=objective,
        unshared_ids=unshared_ids,
        scale=1.0 / _scalar(num_items, states_ND.device),
        wants_grad=torch.is_grad_enabled(),
        chunk=chunk,
    )
    loss, *sums = _DistillationLoss.apply(states_ND, head_VD, call)  # type: ignore[no-untyped-call]
    return loss, LossTerms._make([*sums, loss.new_full((), torch.nan)])


def kl_at_one(
    states_ND: Tensor,
    head_VD: Tensor,
    targets: LossTargets,
    objective: Objective,
    terms: LossTerms,
    *,
    unshared_ids: Tensor,
) -> Tensor:
    """`LossTerms.kl` of a batch, without a gradient; `distillation_loss` has computed its other terms.

    Args:
        states_ND: as for `distillation_loss`; so are `head_VD`, `targets`, `objective` and `unshared_ids`.
        terms: the terms that `distillation_loss` returned.
    """
    if objective.is_kl:
        return terms.kd
    plain = targets.at_one(objective.temperature)
    if plain is None:
        return terms.kl
    with torch.no_grad():
        _, found = distillation_loss(states_ND, head_VD, plain, PLAIN_KL, unshared_ids=unshared_ids, num_items=1)
    return found.kd


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The arguments of a call that are not differentiated."""

    targets: LossTargets
    objective: Objective
    unshared_ids: Tensor
    scale: Tensor
    """1 / N."""
    wants_grad: bool
    chunk: int


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """A float32 scalar on the device. A number is filled in there, since a copy from the host would wait for earlier work."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, head_VD: Tensor, call: _Call) -> tuple[Tensor, ...]:
        needs_states, needs_head = (call.wants_grad and need for need in ctx.needs_input_grad[:2])
        objective, targets, chunk = call.objective, call.targets, call.chunk
        device, N = states_ND.device, len(states_ND)
        divisor = objective.temperature if objective.takes_soft(training=call.wants_grad) else 1.0
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
                y_nV = torch.matmul(states_nD / divisor, weight_VD.T, out=buffer_nV[: len(states_nD)])
                part = targets.chunk(slice(start, start + chunk))
                for first in range(0, len(y_nV), block):
                    rows = slice(first, first + block)
                    sums += block_sums(
                        y_nV[rows],
                        part.chunk(rows),
                        objective,
                        unshared_ids=call.unshared_ids,
                        scale=call.scale if call.wants_grad else None,
                    )
                if grad_states_ND is not None:
                    torch.matmul(y_nV, weight_VD, out=grad_states_ND[start : start + chunk])
                if needs_head and grad_head_VD is None:
                    grad_head_VD = y_nV.T @ states_nD
                elif grad_head_VD is not None:
                    grad_head_VD.addmm_(y_nV.T, states_nD)
        if needs_head and grad_head_VD is None:
            grad_head_VD = torch.zeros_like(weight_VD)
        # not save_for_backward: the gradient of the head is scaled in place, since a copy would be as large as the head
        ctx.grads = (
            grad_states_ND if grad_states_ND is None else grad_states_ND.to(states_ND.dtype),
            grad_head_VD if grad_head_VD is None else grad_head_VD.to(head_VD.dtype),
        )
        kd, ce, agree = sums.float()
        loss = objective.loss(kd, ce) * call.scale
        soft, hard, counted = targets.soft_N.sum().float(), targets.hard_N.sum().float(), targets.counted().float()
        ctx.mark_non_differentiable(kd, ce, agree, soft, hard, counted)
        return loss, kd, ce, agree, soft, hard, counted

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("distillation_loss: backward was called twice, but the first call used up the gradients")
        (states, head), ctx.grads = ctx.grads, None
        return (
            None if states is None else states.mul_(grad_loss),
            None if head is None else head.mul_(grad_loss),
            None,
        )
