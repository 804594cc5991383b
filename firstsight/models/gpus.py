"""Named GPUs and the size of a model from its configuration alone, for the estimates of both phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    memory: float
    """GB (10^9 bytes)."""
    teraflops: float
    """Dense bf16 matrix products with fp32 accumulation, 10^12 per second; half of what is printed "with sparsity"."""
    source: str


GPUS = (
    Gpu(name="RTX 3090", memory=24, teraflops=71, source="NVIDIA Ampere GA102 whitepaper, appendix A"),
    Gpu(name="RTX 4090", memory=24, teraflops=165, source="NVIDIA Ada GPU architecture whitepaper, appendix A"),
    Gpu(name="L4", memory=24, teraflops=121, source="NVIDIA L4 datasheet"),
    Gpu(name="L40S", memory=48, teraflops=362, source="NVIDIA L40S datasheet"),
    Gpu(name="A100 80GB", memory=80, teraflops=312, source="NVIDIA A100 80GB datasheet"),
    Gpu(name="H100 SXM", memory=80, teraflops=989, source="NVIDIA H100 datasheet"),
    Gpu(name="H200 SXM", memory=141, teraflops=989, source="NVIDIA H200 datasheet"),
)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameters of a vision-language model."""

    text: int
    """Parameters of the language model's layers."""
    vision: int
    """Parameters of the vision tower, projector included."""
    embedding: int
    head: int
    """0 if it is tied to the embedding."""
    layers: int
    hidden: int
    intermediate: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.text + self.vision + self.embedding + self.head


def model_size(config: Any) -> ModelSize:
    """Parameters by part, from the configuration: the model is laid out without memory.

    Args:
        config: of transformers.
    """
    from firstsight.families.parts import meta_model, named_parts

    counts = dict.fromkeys(("text", "vision", "embedding", "head"), 0)
    for _, part, parameter in named_parts(meta_model(config)):
        counts["vision" if part == "projector" else part] += parameter.numel()
    text = config.get_text_config()
    return ModelSize(
        **counts, layers=text.num_hidden_layers, hidden=text.hidden_size, intermediate=text.intermediate_size
    )


def count_text(number: int) -> str:
    """A number of parameters for people: `2.21 billion`."""
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"


def bytes_text(count: float) -> str:
    """A number of bytes for people, in decimal units: `17.7 GB`. Everything that prints bytes uses it."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # what rounds to 1,000 is one of the next unit
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
