"""Qwen2-VL with random weights, made and quantised on the device: no download, no disk.

    model = build(config, torch.bfloat16, device)
    quantize(model, "int8")

The outlier path of LLM.int8 takes the columns of the activations that reach 6. Random weights give it either none or nearly
all: after a norm, the activations have a normal distribution of width 1; before the down projection they are a product of
two such, and three columns in four reach 6 (benchmarks/README.md). `reach_outliers` gives the path about as many as in a
trained model: a few channels of every norm in the language model are 20 times as large, and gate and up projections a
quarter of their size.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from firstsight.models.quantization import Quantization, quantization_config

OUTLIER_CHANNELS = 6
OUTLIER_SCALE = 20.0
_QUIET_SCALE = 0.25


def build(config: Any, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> Any:
    """A model with random weights on the device, in eval mode."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


@torch.no_grad()
def reach_outliers(model: Any) -> None:
    """Make a few columns of the activations outliers."""
    for layer in model.base_model.language_model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            channels = torch.linspace(0, len(norm.weight) - 1, OUTLIER_CHANNELS).long()
            norm.weight[channels.to(norm.weight.device)] *= OUTLIER_SCALE
        for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
            matrix.weight *= _QUIET_SCALE


@torch.no_grad()
def quantize(model: Any, kind: Quantization) -> None:
    """Quantise in place, as `from_pretrained` does it: the same modules, the same classes, the same numbers."""
    plain = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    config = quantization_config(kind, torch.bfloat16)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    for name, old in plain.items():
        new = model.get_submodule(name)
        if new is old:
            continue
        new.weight = _int8(old.weight) if kind == "int8" else _nf4(old.weight, new)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.data, requires_grad=False)
        del old.weight  # before the next one is made
    model.requires_grad_(False)
    model.eval()


def _int8(weight: Tensor) -> Any:
    # `Int8Params.to` quantises only what comes from the host: this is the rest of it, without the detour over the host
    rows, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
    return bitsandbytes.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)


def _nf4(weight: Tensor, module: Any) -> Any:
    parameters = bitsandbytes.nn.Params4bit(
        weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=module
    )
    return parameters.to(weight.device)


@torch.inference_mode()
def outlier_columns(model: Any, inputs: dict[str, Tensor]) -> dict[str, float]:
    """How much the outlier path of LLM.int8 has to do in a forward pass: the share of matrices with outliers, and their columns."""
    columns: list[Tensor] = []
    widths: list[int] = []

    def count(module: Any, given: tuple[Tensor, ...]) -> None:
        states = given[0].flatten(0, -2)
        columns.append((states.abs() >= module.state.threshold).any(dim=0).sum())
        widths.append(states.shape[1])

    linear = bitsandbytes.nn.Linear8bitLt
    hooks = [each.register_forward_pre_hook(count) for each in model.modules() if isinstance(each, linear)]
    model.base_model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    found = torch.stack(columns).double().cpu()
    share = found / torch.tensor(widths)
    return {
        "matrices": len(found),
        "with outliers": float((found > 0).double().mean()),
        "columns, mean": float(found.mean()),
        "columns, largest share": float(share.max()),
    }
