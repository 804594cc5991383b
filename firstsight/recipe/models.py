"""The sections of a recipe that describe the two models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from firstsight.recipe_yaml import Place, Section, Unit


class TeacherSection(Section):
    """The frozen model that is run once."""

    model: Annotated[str, Place()] = "Qwen/Qwen2-VL-7B-Instruct"
    """Directory or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    quantization: Literal["int8", "nf4", "none"] = "int8"
    """How the weights are loaded: `int8` and `nf4` by bitsandbytes, a byte and about half a byte per weight."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Compute type. Values beyond 65,504 overflow in float16."""
    max_pixels: Annotated[int | None, Field(gt=0), Unit("pixels")] = None
    """Images are scaled down to at most this many pixels; null: the processor's own limit."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Which attention transformers runs; `flash_attention_2` needs the package flash-attn."""
    device_map: str | None = None
    """`auto`, `cpu`, `cuda:0`, ...; null: the first GPU where there is one."""
    batch_tokens: Annotated[int, Field(gt=0), Unit("tokens")] = 16_384
    """Tokens of one forward pass, padding and images included. LLM.int8 results depend on it, so the cache is bound to it."""
    trust_remote_code: bool = False
    """Run the Python code that a model's repository brings; only for repositories that you trust."""


class LoraSection(Section):
    """Low-rank adapters, by peft: small matrices are trained beside frozen weights, and merged into them when the student is saved."""

    r: Annotated[int, Field(ge=1), Unit("none")] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0), Unit("none")] = 32
    """The adapters' output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1), Unit("none")] = 0.0
    """Share of the adapters' inputs that is set to 0 in training."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Ends of module names; the default is every linear layer of a language model's blocks."""


class StudentSection(Section):
    """The model that is trained."""

    model: Annotated[str, Place()] = "Qwen/Qwen2-VL-2B-Instruct"
    """Directory or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the saved weights, and of weights that LoRA leaves as they are."""
    precision: Literal["fp32_master", "bf16_kahan"] = "fp32_master"
    """How the trained weights are kept. `fp32_master`: in float32, 16 bytes per weight with gradient and AdamW's state.
    `bf16_kahan`: in bfloat16, with a second tensor for what rounding loses (Kahan summation), updated by 8-bit AdamW,
    8 bytes per weight."""
    freeze: tuple[Literal["vision", "projector", "embedding"], ...] = ()
    """Parts that are not trained: the vision tower, the layer between it and the language model, the embedding with a
    head tied to it."""
    lora: LoraSection | None = None
    """Train adapters instead of the weights; null: train the weights."""
    max_pixels: Annotated[int | None, Field(gt=0), Unit("pixels")] = None
    """Images are scaled down to at most this many pixels; null: the processor's own limit."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Which attention transformers runs; `flash_attention_2` needs the package flash-attn."""
    padding_free: bool = False
    """Put the samples of a micro-batch into one row without padding; for `flash_attention_2`. Other attention gives the same
    result, but its cost grows with the square of the whole row's length."""
    trust_remote_code: bool = False
    """Run the Python code that a model's repository brings; only for repositories that you trust."""
