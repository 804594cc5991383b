"""8-bit AdamW for weights in bfloat16: Kahan's remainder keeps what rounding the weight loses.

The neighbours of a bfloat16 weight of 0.02 are 1.2e-4 away: a step of 1e-5 is rounded to nothing. Here every weight has a
second number, the part of it that bfloat16 could not hold, and the optimiser steps on the sum of both. Two bfloat16 numbers
hold 16 bits of mantissa. Small tensors (norms, with values near 1, and biases) have a float32 remainder: it costs little,
and weight and remainder together are then a full float32 number.

Bytes per weight: 2 for the weight, 2 for the remainder, 2 for the state (bitsandbytes), and 2 for the gradient.
Source of the summation: Kahan, Further remarks on reducing truncation errors (1965).
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import Tensor

_VECTOR = 4096
"""For tensors with fewer elements bitsandbytes keeps 32-bit state, and the remainder is float32."""


class KahanAdamW8bit(bitsandbytes.optim.AdamW8bit):
    """`bitsandbytes.optim.AdamW8bit` that loses no steps on bfloat16 weights; other weights are stepped as usual.

    Nothing here is random: the same gradients give the same bits. `state_dict` holds the remainders.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, min_8bit_size=_VECTOR, **options)
        # otherwise loading would round a float32 remainder to its weight's dtype
        self.non_castable_tensor_keys.add("remainder")

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Step one weight; called by `step` for each of them."""
        if p.dtype != torch.bfloat16 or p.grad is None:
            super().update_step(group, p, gindex, pindex)
            return
        state = self.state[p]
        if "remainder" not in state:
            kept = torch.float32 if p.numel() < _VECTOR else torch.bfloat16
            state["remainder"] = torch.zeros_like(p, dtype=kept)
        exact = torch.nn.Parameter(p.float().add_(state["remainder"]))
        exact.grad = p.grad.float()
        self.state[exact] = state  # the stock step looks for it there
        super().update_step(group, exact, gindex, pindex)
        del self.state[exact]
        p.copy_(exact)
        state["remainder"].copy_(exact.sub_(p))
