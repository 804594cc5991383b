"""The parts of a model, distinguished by the names of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch.nn import Parameter

from firstsight.families import family_of

Part = Literal["vision", "projector", "embedding", "head", "text"]


def named_parts(model: Any) -> list[tuple[str, Part, Parameter]]:
    """Every parameter once, with its name and the part it belongs to; a head tied to the embedding is `embedding`.

    Args:
        model: of transformers, with weights or on the meta device.
    """
    family = family_of(model.config)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    found: list[tuple[str, Part, Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            part: Part = "embedding"
        elif parameter is head:
            part = "head"
        else:
            part = family.part(name)
        found.append((name, part, parameter))
    return found


def language_modules(model: Any, ending: str) -> list[str]:
    """Names of the language model's modules that are `ending` or end in it, without those of the vision tower and the
    projector, which may have the same names.
    """
    family = family_of(model.config)
    return [
        name
        for name, _ in model.named_modules()
        if (name == ending or name.endswith(f".{ending}")) and family.part(name) == "text"
    ]


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The shape of a model's head."""

    rows: int
    """V, padding included."""
    hidden_size: int
    bias: bool


def head_shape(config: Any) -> HeadShape:
    """The shape of the head of a model of this configuration."""
    head = meta_model(config).get_output_embeddings()
    rows, hidden_size = head.weight.shape
    return HeadShape(rows=rows, hidden_size=hidden_size, bias=getattr(head, "bias", None) is not None)


def meta_model(config: Any) -> Any:
    """The model of a configuration on the meta device: shapes and names, no memory for weights.

    Args:
        config: of transformers.
    """
    import torch

    with torch.device("meta"):
        return family_of(config).load_class().from_config(config)
