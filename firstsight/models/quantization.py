"""bitsandbytes checkpoints: how a model is quantised, how a directory's weights already are, and how large the weights become.

    weight_bytes(config, "int8")     # from a configuration alone, no weights

LLM.int8 (Dettmers et al. 2022) and NF4 with double quantisation (Dettmers et al. 2023). Embedding, head and norms stay as they are.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from firstsight.errors import ModelError
from firstsight.recipe import StudentSection, TeacherSection

Quantization = Literal["int8", "nf4"]

_NF4_BLOCK = 64
"""Weights that share a scale."""
_PACKED_ROWS = 32
"""Rows of a matrix that bitsandbytes packs together for a CPU."""
_NF4_NESTED_BLOCK = 256
"""Scales that share a scale of their own."""
_NF4_TABLES = 16 * 4 + 256 * 4 + 170
"""Bytes beside each NF4 matrix: two fp32 code tables and its description in JSON."""


def quantization_config(kind: Quantization, dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes to quantise while it loads; `dtype` is NF4's compute type."""
    import transformers

    silence()
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def silence() -> None:
    """Keep bitsandbytes from logging a line per matmul."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def stored_quantization(directory: Path) -> str | None:
    """`int8`, `nf4` or another method's name if the directory's weights are already quantised; else None."""
    stored = _stored_config(_config(directory))
    if not stored:
        return None
    if stored.get("load_in_8bit"):
        return "int8"
    if stored.get("load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "nf4"))
    return str(stored.get("quant_method", "unknown"))


def _config(directory: Path) -> dict[str, Any]:
    """config.json; empty if it is none that transformers reads, which says so when it does."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _stored_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """The part of config.json that says how the weights are quantised: for the whole model or its language model."""
    for part in (config, config.get("text_config")):
        stored = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(stored, dict) and stored:
            return stored
    return None


def check_stored(directory: Path, section: TeacherSection | StudentSection) -> None:
    """Check that quantised weights are what a recipe states: those in the directory override it.

    Args:
        directory: of the model.
        section: a teacher may be stored as it is loaded; a student is to be trained.

    Raises:
        ModelError: a teacher of another quantisation or dtype, or a quantised student.
    """
    stored = stored_quantization(directory)
    if stored is None:
        return
    if isinstance(section, StudentSection):
        raise ModelError(
            f"student.model: {directory} holds weights that are quantised already ({stored}), which cannot be trained; give the "
            "unquantised checkpoint"
        )
    if stored not in get_args(Quantization):
        raise ModelError(
            f"teacher.model: {directory} holds weights that are quantised by {stored}, which is not supported; give the unquantised "
            f"checkpoint, or one that bitsandbytes made ({', '.join(get_args(Quantization))})"
        )
    if stored != section.quantization:
        wanted = "unquantised" if section.quantization == "none" else f"as {section.quantization}"
        raise ModelError(
            f"teacher.model: {directory} holds weights that are quantised already, and that can only be loaded as {stored} "
            f"(teacher.quantization: {stored}), not {wanted}; give the unquantised checkpoint for that"
        )
    config = _config(directory)
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype not in (None, section.dtype):
        raise ModelError(
            f"teacher.dtype: {directory} holds weights that are quantised already, and what is not quantised is {dtype}, expected "
            f"{section.dtype}; set teacher.dtype: {dtype}, or give the unquantised checkpoint"
        )


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let NF4 matrices compute in a dtype, whatever the directory that they were loaded from says."""
    for module in model.modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            module.compute_dtype = dtype


def keep_plain_where_packing_fails(model: Any) -> None:
    """Let NF4 matrices whose shape bitsandbytes cannot pack for CPUs with AVX512-BF16 stay as they are stored, which is slower.

    It packs each at its first use, and fails where the inputs are no multiple of a block of weights or the outputs none of its tile.

    Args:
        model: loaded; left alone where nothing of it is NF4.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and hasattr(module, "support_avx512bf16_for_cpu"):
            rows, columns = state.shape
            if rows % _PACKED_ROWS or columns % state.blocksize:
                module.support_avx512bf16_for_cpu = False


def weight_bytes(config: Any, kind: Quantization | None, section: TeacherSection | StudentSection | None = None) -> int:
    """Bytes of the weights of a checkpoint, computed without loading it: the model is laid out without memory.

    Args:
        config: of transformers.
        kind: None: unquantised.
        section: its `dtype` is that of what is not quantised; None: two bytes each.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    from firstsight.families.parts import meta_model

    model = meta_model(config)
    wide = getattr(torch, section.dtype).itemsize if section is not None else 2
    kept = set(get_keys_to_not_convert(model))
    total = wide * int(model.num_parameters())  # tied weights count once
    if kind is None:
        return total
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in kept:
            weights = module.weight.numel()
            total -= wide * weights
            total += _int8_bytes(weights, module.out_features) if kind == "int8" else _nf4_bytes(weights)
    return total


def _int8_bytes(weights: int, rows: int) -> int:
    return weights + 4 * rows + 1  # a scale per row, and a byte that names the layout


def _nf4_bytes(weights: int) -> int:
    scales = -(-weights // _NF4_BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // _NF4_NESTED_BLOCK) + _NF4_TABLES
