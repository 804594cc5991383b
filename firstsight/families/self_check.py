"""Our logits against those of the stock model, on a few positions of the first batch of every dump and every training.

    check_logits(model, inputs, columns, ours, role="teacher")

We call the backbone and project the answer positions ourselves. If a model does more (another norm, a bias, scaling or
soft-capping of its logits), our logits would be wrong; this check finds that in any family.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from firstsight.errors import ModelError

# n positions of one sample, V rows of the head

POSITIONS = 8
"""Positions that are compared."""
_PROBE = 50.0  # logits of this size reveal a soft-cap that those of a small or untrained model do not reach
_ROUNDING = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Allowed difference, as a share of the largest logit: a head in 16 bits rounds what ours, in float32, does not."""


def checked_columns(length: int) -> Tensor:
    """int64 [n]: the last positions of a sequence of `length` tokens, `POSITIONS` at most."""
    return torch.arange(max(0, length - POSITIONS), length)


@torch.inference_mode()
def check_logits(model: Any, inputs: dict[str, Tensor], columns: Tensor, ours_nV: Tensor, *, role: str) -> bool:
    """Compare, and refuse a model if our logits differ from its own. False: nothing could be compared, the logits are not finite.

    Args:
        model: with its head, in evaluation mode.
        inputs: of a batch, on the model's device; its first sample is compared.
        columns: int64 [n], positions in that sample.
        ours_nV: float32, our logits there.
        role: names the model in the error.

    Raises:
        ModelError: logits that differ beyond rounding.
    """
    stock_nV = _stock_logits(model, inputs, columns)
    rounding = _ROUNDING.get(stock_nV.dtype, 1e-4)
    stock_nV, ours_nV = stock_nV.float(), ours_nV.to(stock_nV.device)
    if not (stock_nV.isfinite().all() and ours_nV.isfinite().all()):
        return False  # the training or the dump reports it with its sample
    largest = float(stock_nV.abs().max())
    apart = float((stock_nV - ours_nV).abs().max())
    if apart > rounding * largest:
        raise ModelError(
            f"{role}: our logits differ from the model's own by {apart:.3g} (its largest is {largest:.3g}): its head does more "
            f"than we compute, so model_type {model.config.model_type!r} is not supported as it is configured here"
        )
    with _probed_head(model) as probe_V:
        probed_nV = _stock_logits(model, inputs, columns).float()
    expected_V = probe_V[0].float().to(probed_nV.device)
    apart = float((probed_nV - expected_V).abs().max())
    if apart > 1e-3:  # a stock model leaves it unchanged
        raise ModelError(
            f"{role}: the model changes its logits after the head (a logit of {_PROBE:g} becomes {float(probed_nV[0, -1]):.4g}): "
            f"scaling or soft-capping, which is not supported for model_type {model.config.model_type!r} as it is configured here"
        )
    return True


def _stock_logits(model: Any, inputs: dict[str, Tensor], columns: Tensor) -> Tensor:
    """[n, V] in the model's dtype."""
    some = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = (
        {"logits_to_keep": columns.cpu()} if some else {}
    )  # an index on the CPU serves whichever GPU has the states
    logits: Tensor = model(**inputs, use_cache=False, **options).logits[0]
    return logits if some else logits[columns.to(logits.device)]


@contextmanager
def _probed_head(model: Any) -> Iterator[list[Tensor]]:
    """While it lasts, the head puts out numbers from -50 to 50 whatever it is given; the list holds them after a forward."""
    probe: list[Tensor] = []

    def replaced(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        ramp_V = torch.linspace(-_PROBE, _PROBE, output.shape[-1], device=output.device).to(output.dtype)
        probe[:] = [ramp_V]
        return ramp_V.expand_as(output).clone()

    handle = model.get_output_embeddings().register_forward_hook(replaced)
    try:
        yield probe
    finally:
        handle.remove()
