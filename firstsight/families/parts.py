"""The parts of a vision-language model, told apart by the names of its parameters."""

from __future__ import annotations

from typing import Any, Literal

from torch.nn import Parameter

Part = Literal["vision", "projector", "embedding", "head", "text"]

_VISION = {"visual", "vision_tower", "vision_model"}
_PROJECTOR = {"merger", "multi_modal_projector", "connector"}


def named_parts(model: Any) -> list[tuple[str, Part, Parameter]]:
    """Every parameter once, with its name and the part it belongs to; a head tied to the embedding is `embedding`.

    Args:
        model: of transformers, with weights or on the meta device.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    found: list[tuple[str, Part, Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            part: Part = "embedding"
        elif parameter is head:
            part = "head"
        elif _PROJECTOR & set(name.split(".")):
            part = "projector"
        else:
            part = "vision" if _VISION & set(name.split(".")) else "text"
        found.append((name, part, parameter))
    return found


def skeleton(config: Any) -> Any:
    """The model of a configuration without memory for its weights, on the meta device.

    Args:
        config: of transformers.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)
