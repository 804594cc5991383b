"""Everything that differs from one model family to another.

    family = family_of(config)                     # refuses an unknown family, with the list of known ones
    inputs = family.image_inputs(processor, images)

`base.Family` follows transformers' conventions. A family that keeps to them is one row of `FAMILIES`; one that does not is a
small class in its own module, and a row.
"""

from __future__ import annotations

from typing import Any

from firstsight.errors import ModelError
from firstsight.families.base import Family
from firstsight.families.gemma3 import Gemma3
from firstsight.families.idefics3 import Idefics3
from firstsight.families.llava_onevision import LlavaOnevision
from firstsight.families.qwen_vl import QwenVL
from firstsight.families.text import Text

FAMILIES: tuple[Family, ...] = (
    QwenVL(name="Qwen2-VL", model_types=("qwen2_vl",), one_feature_per_image=True),
    QwenVL(name="Qwen2.5-VL", model_types=("qwen2_5_vl",), one_feature_per_image=True),
    QwenVL(name="Qwen3-VL", model_types=("qwen3_vl",)),
    Idefics3(name="SmolVLM2", model_types=("smolvlm",)),
    Idefics3(name="Idefics3", model_types=("idefics3",), shuffle=2),
    Gemma3(name="Gemma 3", model_types=("gemma3",)),
    LlavaOnevision(name="LLaVA-OneVision", model_types=("llava_onevision",)),
    Text(name="Llama, SmolLM2 (text)", model_types=("llama",)),
    Text(name="Qwen2, Qwen2.5 (text)", model_types=("qwen2",)),
    Text(name="Qwen3 (text)", model_types=("qwen3",)),
)


def family_of(config: Any, where: str = "the model") -> Family:
    """The family of a configuration of transformers.

    Args:
        config: of the model.
        where: names the model in the error.

    Raises:
        ModelError: a family that is not known.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    raise ModelError(
        f"{where}: model_type {config.model_type!r} is not supported; supported are {known_families()}. To add a family, add a row "
        "to firstsight/families/__init__.py"
    )


def known_families() -> str:
    """The families and their model types, for messages."""
    return ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
