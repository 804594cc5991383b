"""What a dump costs on named cards: floating-point operations and memory of the teacher, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firstsight.recipe import TeacherSection


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as its maker describes it."""

    name: str
    memory: float
    """GB (10^9 bytes)."""
    teraflops: float
    """Dense bf16 matrix products with fp32 accumulation, 10^12 per second; half of what is printed "with sparsity"."""
    source: str


CARDS = (
    Card(name="RTX 3090", memory=24, teraflops=71, source="NVIDIA Ampere GA102 whitepaper, appendix A"),
    Card(name="RTX 4090", memory=24, teraflops=165, source="NVIDIA Ada GPU architecture whitepaper, appendix A"),
    Card(name="L4", memory=24, teraflops=121, source="NVIDIA L4 datasheet"),
    Card(name="L40S", memory=48, teraflops=362, source="NVIDIA L40S datasheet"),
    Card(name="A100 80GB", memory=80, teraflops=312, source="NVIDIA A100 80GB datasheet"),
    Card(name="H100 SXM", memory=80, teraflops=989, source="NVIDIA H100 datasheet"),
    Card(name="H200 SXM", memory=141, teraflops=989, source="NVIDIA H200 datasheet"),
)


@dataclass(frozen=True, kw_only=True)
class TeacherSize:
    """Parameters of a teacher."""

    text: int
    """Of the language model's layers."""
    vision: int
    embedding: int
    head: int
    layers: int
    hidden: int
    intermediate: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.text + self.vision + self.embedding + self.head


@dataclass(frozen=True, kw_only=True)
class Work:
    """What goes through the teacher."""

    tokens: int
    squared_tokens: int
    """Sum of the squares of the samples' lengths."""
    patches: int
    """Of the images that are not seen yet in their unit."""
    positions: int


def teacher_size(config: Any) -> TeacherSize:
    """Parameters by part, from the configuration: the model is laid out without memory.

    Args:
        config: of transformers.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    counts = {"text": 0, "vision": 0}
    for name, parameter in model.named_parameters():
        if parameter is not embedding and parameter is not head:
            part = "vision" if {"visual", "vision_tower", "vision_model"} & set(name.split(".")) else "text"
            counts[part] += parameter.numel()
    text = config.get_text_config()
    return TeacherSize(
        **counts,
        embedding=embedding.numel(),
        head=0 if head is embedding else head.numel(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
    )


def operations(size: TeacherSize, work: Work) -> float:
    """Floating-point operations of one pass: two per parameter and token, and the causal attention's products."""
    head = size.head or size.embedding
    attention = 2 * size.layers * size.hidden * work.squared_tokens
    return 2.0 * (size.text * work.tokens + size.vision * work.patches + head * work.positions) + attention


def memory(size: TeacherSize, section: TeacherSection) -> float:
    """Bytes of device memory, about: weights as quantised, the head in fp32, a batch's activations, two chunks of logits."""
    wide = 4 if section.dtype == "float32" else 2
    per_weight = {"int8": 1.0, "nf4": 0.55, "none": float(wide)}[section.quantization]  # nf4: its scales included
    head = size.head or size.embedding
    weights = per_weight * (size.text + size.vision) + wide * (size.embedding + size.head)
    activations = section.batch_tokens * wide * (8 * size.hidden + 3 * size.intermediate)
    chunks = 2 * 128 * 4 * head / size.hidden
    return weights + 4 * head + activations + chunks + 1e9  # and the CUDA context
