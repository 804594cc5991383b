"""8-bit AdamW for weights that are kept in bfloat16: Kahan's remainder holds what a rounded weight leaves out.

A bfloat16 weight of 0.02 lies 1.2e-4 from its neighbours: a step of 1e-5 rounds back to where it was. Here every weight
has a second number, the part of it that bfloat16 could not hold; the optimiser steps on the sum of both. Two bfloat16
numbers hold 16 bits of mantissa. Small weights (norms, whose values are near 1, and biases) have a float32 remainder: it
costs nothing, and weight and remainder are then a full float32 number.

Bytes per weight: 2 the weight, 2 the remainder, 2 the state (bitsandbytes), and 2 the gradient.
Source of the summation: Kahan, Further remarks on reducing truncation errors (1965).
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import Tensor

_VECTOR = 4096
"""Below this many elements bitsandbytes keeps 32-bit state, and the remainder is float32."""


class KahanAdamW8bit(bitsandbytes.optim.AdamW8bit):
    """`bitsandbytes.optim.AdamW8bit` whose steps are not lost on bfloat16 weights; others are stepped as they are.

    Nothing here is random: the same gradients give the same bits, and `state_dict` holds the remainders.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, min_8bit_size=_VECTOR, **options)
        # else a float32 remainder would be rounded to its weight's type when it is loaded
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
        self.state[exact] = state  # where the stock step looks for it
        super().update_step(group, exact, gindex, pindex)
        del self.state[exact]
        p.copy_(exact)
        state["remainder"].copy_(exact.sub_(p))
