"""What a dump costs on a GPU: floating-point operations and memory of the teacher, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from firstsight.models.gpus import ModelSize
from firstsight.recipe import TeacherSection

UTILIZATION = {"int8": 0.17, "nf4": 0.3, "none": 0.32}
"""Share of a GPU's dense bf16 peak that a dump reaches: measured with Qwen2-VL-7B's shape on an H200 (nf4: assumed)."""


@dataclass(frozen=True, kw_only=True)
class TeacherWork:
    """The input of the teacher: sums over all samples."""

    tokens: int
    squared_tokens: int
    """Sum of the squares of the samples' lengths."""
    patches: int
    """Image patches, each image counted once."""
    positions: int


def forward_flops(size: ModelSize, work: TeacherWork) -> float:
    """Floating-point operations of one pass: two per parameter and token, plus the products of causal attention."""
    head = size.head or size.embedding
    attention = 2 * size.layers * size.hidden * work.squared_tokens
    return 2.0 * (size.text * work.tokens + size.vision * work.patches + head * work.positions) + attention


def device_bytes(size: ModelSize, section: TeacherSection) -> float:
    """An estimate of device memory in bytes: quantised weights, the head in fp32, a batch's activations, two chunks of logits."""
    per_value = 4 if section.dtype == "float32" else 2
    per_weight = {"int8": 1.0, "nf4": 0.55, "none": float(per_value)}[section.quantization]  # nf4: its scales included
    head = size.head or size.embedding
    weights = per_weight * (size.text + size.vision) + per_value * (size.embedding + size.head)
    activations = section.batch_tokens * per_value * (8 * size.hidden + 3 * size.intermediate)
    if section.quantization == "int8":
        activations += section.batch_tokens * 4 * size.intermediate  # the product of a matrix, in int32
    chunks = 2 * 128 * 4 * head / size.hidden
    return weights + 4 * head + activations + chunks + 1e9  # and the CUDA context
