"""Device memory of a training run, part by part, from the student's shape alone: the estimate behind `fs-student plan`.

Weights, gradients and optimiser state are counted exactly. What the graph keeps is estimated per token and layer; a test
compares it with what torch saves for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from firstsight.families.parts import language_modules, meta_model, named_parts
from firstsight.recipe import LoraSection, StudentSection
from phase2_student.loss.divergences import Divergence, ForwardKL
from phase2_student.loss.fused import CHUNK

_LOGITS = 2
"""A chunk of logits, and working memory of the same size."""

Mode = Literal["fp32_master", "bf16_kahan", "lora"]
MODES: tuple[Mode, ...] = ("fp32_master", "bf16_kahan", "lora")

_CONTEXT = 0.8e9
"""Bytes of the CUDA context, cuBLAS and the allocator's gaps."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The properties of a student on which its memory depends."""

    trained: int
    """Number of weights that are trained without adapters."""
    frozen: int
    matrices: int
    """Number of weights of the layers, which autocast casts to bfloat16; without embedding and head."""
    adapters: int
    """Number of weights of LoRA's adapters."""
    head: int
    """Number of weights of the head's matrix, tied or not."""
    rows: int
    """V, rows of the head."""
    head_trained: bool
    vision_trained: bool
    largest: int
    """Number of weights of the largest matrix."""
    layers: int
    hidden: int
    intermediate: int
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    activation_bytes: int
    """Bytes of one value: 2 in bfloat16, 4 in float32."""
    saved_bytes: int
    """Bytes of one saved weight; weights under adapters have the same dtype."""


@dataclass(frozen=True, kw_only=True)
class HeadOfTeacher:
    """The teacher's head that exact targets need."""

    rows: int
    """S, rows of the head for the shared ids, at most."""
    hidden: int
    """D, numbers in a state."""
    head_bytes: int
    """Bytes of a number of the head."""
    state_bytes: int
    """Bytes of a number of a state."""

    @property
    def weights(self) -> int:
        """Bytes of the head's rows."""
        return self.rows * self.hidden * self.head_bytes

    @property
    def position(self) -> int:
        """Bytes of the targets of an answer position."""
        return self.hidden * self.state_bytes


@dataclass(frozen=True, kw_only=True)
class TailOfCache:
    """The shape that the tail of a top_k cache has."""

    rows: int
    """S, ids that both vocabularies have, at most."""
    rank: int
    """r, its directions."""

    @property
    def weights(self) -> int:
        """Bytes of the directions' image and of the mean logits, in float32."""
        return 4 * self.rows * (self.rank + 1)

    @property
    def position(self) -> int:
        """Bytes of the coordinates of an answer position."""
        return 4 * self.rank


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Estimated bytes on one device at the peak of a step."""

    mode: Mode
    gradient_checkpointing: bool
    weights: float
    """Weights, with the bfloat16 copies that autocast makes of float32 weights."""
    gradients: float
    optimizer: float
    targets: float
    """The teacher's head and the states of a micro-batch, from an exact cache; the image of the tail's directions and the coordinates,
    from a top_k cache with `cache.tail_rank`; else 0."""
    loss: float
    """A chunk of logits, the head in float32 and its gradient; with exact targets, or a tail with a shape, a chunk of distributions
    as well."""
    activations: float
    step: float
    """Working memory of the optimiser's step, after the graph has been freed."""

    @property
    def total(self) -> float:
        """Bytes that are in use at the same time, with a CUDA context."""
        kept = self.weights + self.gradients + self.optimizer + self.targets
        return kept + max(self.loss + self.activations, self.step) + _CONTEXT


def student_shape(config: Any, section: StudentSection, *, activation_bytes: int) -> Shape:
    """The shape of a student.

    Args:
        config: a transformers configuration.
        section: section of the recipe: says what is frozen, and LoRA's rank.
        activation_bytes: bytes of one value.
    """
    model = meta_model(config)
    lora = section.lora or LoraSection()
    parts = named_parts(model)
    trained = sum(p.numel() for _, part, p in parts if part not in section.freeze)
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    vision_hidden = 0 if vision is None else getattr(vision, "embed_dim", vision.hidden_size)
    modules = dict(model.named_modules())
    return Shape(
        trained=trained,
        frozen=sum(p.numel() for _, _, p in parts) - trained,
        matrices=sum(p.numel() for _, part, p in parts if part not in ("embedding", "head")),
        adapters=sum(
            lora.r * sum(modules[name].weight.shape)
            for target in lora.target_modules
            for name in language_modules(model, target)
            if hasattr(modules[name], "in_features")
        ),
        head=head.numel(),
        rows=len(head),
        head_trained=not (tied and "embedding" in section.freeze),
        vision_trained="vision" not in section.freeze,
        largest=max(p.numel() for _, _, p in parts),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vision_layers=0 if vision is None else getattr(vision, "depth", 0) or vision.num_hidden_layers,
        vision_hidden=vision_hidden,
        vision_intermediate=0
        if vision is None
        else getattr(vision, "intermediate_size", 0) or int(vision_hidden * vision.mlp_ratio),
        activation_bytes=activation_bytes,
        saved_bytes=4 if section.dtype == "float32" else 2,
    )


def footprint(
    shape: Shape,
    mode: Mode,
    *,
    tokens: int,
    patches: int,
    gradient_checkpointing: bool,
    whole: HeadOfTeacher | TailOfCache | None = None,
    positions: int = 0,
    divergence: type[Divergence] = ForwardKL,
) -> Footprint:
    """Memory of one way to train.

    Args:
        shape: the student's shape.
        mode: how the weights are kept.
        tokens: tokens of the largest micro-batch, padding included.
        patches: patches of its images.
        gradient_checkpointing: layers keep only their inputs.
        whole: what the loss needs to make whole distributions; None: it takes stored entries and a bucket.
        positions: answer positions of the largest micro-batch.
        divergence: the loss's divergence.
    """
    everything = shape.trained + shape.frozen
    step = 0
    if mode == "fp32_master":
        casts = 2 * shape.matrices if shape.activation_bytes == 2 else 0
        weights, gradients, optimizer = 4 * everything + casts, 4 * shape.trained, 8 * shape.trained
    elif mode == "bf16_kahan":
        # 8-bit state has a float32 scale for every 256 values; a step works on one matrix and its gradient in float32
        weights, gradients, step = 2 * everything, 2 * shape.trained, 8 * shape.largest
        optimizer = int((2 + 2 * 4 / 256 + 2) * shape.trained)
    else:
        weights = shape.saved_bytes * everything + 4 * shape.adapters
        gradients, optimizer = 4 * shape.adapters, 8 * shape.adapters
    kept_bytes = {"fp32_master": 4, "bf16_kahan": 2, "lora": shape.saved_bytes}[mode]
    copies = 0 if kept_bytes == 4 else 4
    head_trained = shape.head_trained and mode != "lora"
    gradient = (4 + (0 if kept_bytes == 4 else kept_bytes)) * head_trained
    return Footprint(
        mode=mode,
        gradient_checkpointing=gradient_checkpointing,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        targets=0 if whole is None else whole.weights + positions * whole.position,
        loss=chunk_bytes(shape.rows, whole, divergence) + (copies + gradient) * shape.head,
        activations=_activations(shape, mode, tokens, patches, gradient_checkpointing),
        step=step,
    )


def chunk_bytes(rows: int, whole: HeadOfTeacher | TailOfCache | None, divergence: type[Divergence]) -> float:
    """Bytes of the loss's working memory for a chunk of answer positions.

    Args:
        rows: V, rows of the student's head.
        whole: what the loss needs to make whole distributions; None: it takes stored entries and a bucket.
        divergence: the loss's divergence.
    """
    return 4 * CHUNK * (_LOGITS * rows + (0 if whole is None else divergence.distributions * whole.rows))


def _activations(shape: Shape, mode: Mode, tokens: int, patches: int, gradient_checkpointing: bool) -> float:
    size, h, i = shape.activation_bytes, shape.hidden, shape.intermediate
    e, f = shape.vision_hidden, shape.vision_intermediate
    # a layer of the language model keeps about 8 vectors of the hidden size, 4 of the inner one, and its norms' float32
    layer = (8 * size + 8) * h + 4 * size * i
    vision_layer = (8 * size + 8) * e + 2 * size * f
    vision = patches if shape.vision_trained and mode != "lora" else 0
    if gradient_checkpointing:
        kept = tokens * size * h * shape.layers + vision * size * e * shape.vision_layers
        return kept + max(tokens * layer, patches * vision_layer)
    return tokens * layer * shape.layers + max(vision * vision_layer * shape.vision_layers, patches * vision_layer)
