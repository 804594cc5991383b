"""Writes docs/models.md: the families of `firstsight.families`, the pairs that a test runs, and the memory of common pairs.

    python docs/make_models.py

Memory is the estimate of `fs-teacher plan` and `fs-student plan` for the shapes below, which are those of the published
checkpoints; no model is loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("models.md")
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "families")]

from pairs import MIXED, SUITE  # noqa: E402

from firstsight.families import FAMILIES  # noqa: E402
from firstsight.families.clock import PROMPT_DATE  # noqa: E402
from firstsight.models.gpus import bytes_text, count_text, model_size  # noqa: E402
from firstsight.recipe import StudentSection, TeacherSection  # noqa: E402
from phase1_teacher.planning.cost import device_bytes  # noqa: E402
from phase2_student.planning.footprint import footprint, student_shape  # noqa: E402

# the student's micro-batch of the estimate: two samples of 1,400 tokens, each with an image of 1,003,520 pixels
TOKENS, PATCHES = 2 * 1_400, 2 * 5_120


def _text(hidden: int, inner: int, layers: int, heads: int, key_values: int, rows: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": rows,
        **more,
    }


def _vision(hidden: int, inner: int, layers: int, image: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 72 if hidden == 1152 else hidden // 64,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


def _qwen2_vl(text: dict[str, Any], *, tied: bool) -> Any:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def _qwen2_5_vl(text: dict[str, Any], *, tied: bool) -> Any:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": text["hidden_size"]}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def _qwen3_vl(text: dict[str, Any], vision: tuple[int, int, int], *, tied: bool) -> Any:
    depth, hidden, inner = vision
    tower = {"depth": depth, "hidden_size": hidden, "intermediate_size": inner, "out_hidden_size": text["hidden_size"]}
    text = {**text, "head_dim": 128, "tie_word_embeddings": tied}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=tied)


def _smolvlm(text: dict[str, Any], vision: dict[str, Any], scale: int) -> Any:
    text = {**text, "model_type": "llama"}
    return transformers.SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=scale, tie_word_embeddings=False
    )


def _gemma3(text: dict[str, Any]) -> Any:
    vision = _vision(1152, 4304, 27, 896, 14)
    return transformers.Gemma3Config(text_config={**text, "head_dim": 256}, vision_config=vision)


def _llava(text: dict[str, Any], *, tied: bool) -> Any:
    vision = {**_vision(1152, 4304, 26, 384, 14), "model_type": "siglip_vision_model", "vision_use_head": False}
    return transformers.LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2"}, vision_config=vision, tie_word_embeddings=tied
    )


MODELS = {
    "Qwen2-VL-7B": _qwen2_vl(_text(3584, 18944, 28, 28, 4, 152_064), tied=False),
    "Qwen2-VL-2B": _qwen2_vl(_text(1536, 8960, 28, 12, 2, 151_936), tied=True),
    "Qwen2.5-VL-7B": _qwen2_5_vl(_text(3584, 18944, 28, 28, 4, 152_064), tied=False),
    "Qwen2.5-VL-3B": _qwen2_5_vl(_text(2048, 11008, 36, 16, 2, 151_936), tied=True),
    "Qwen3-VL-8B": _qwen3_vl(_text(4096, 12288, 36, 32, 8, 151_936), (27, 1152, 4304), tied=False),
    "Qwen3-VL-2B": _qwen3_vl(_text(2048, 6144, 28, 16, 8, 151_936), (24, 1024, 4096), tied=True),
    "SmolVLM2-2.2B": _smolvlm(_text(2048, 8192, 24, 32, 32, 49_280), _vision(1152, 4304, 27, 384, 14), 3),
    "SmolVLM2-500M": _smolvlm(_text(960, 2560, 32, 15, 5, 49_280), _vision(768, 3072, 12, 512, 16), 4),
    "Gemma 3 12B": _gemma3(_text(3840, 15360, 48, 16, 8, 262_208)),
    "Gemma 3 4B": _gemma3(_text(2560, 10240, 34, 8, 4, 262_208)),
    "LLaVA-OneVision 7B": _llava(_text(3584, 18944, 28, 28, 4, 152_000), tied=False),
    "LLaVA-OneVision 0.5B": _llava(_text(896, 4864, 24, 14, 2, 152_000), tied=True),
    "Qwen2.5-7B": transformers.Qwen2Config(**_text(3584, 18944, 28, 28, 4, 152_064)),
    "Qwen2.5-0.5B": transformers.Qwen2Config(**_text(896, 4864, 24, 14, 2, 151_936), tie_word_embeddings=True),
    "Llama 3.1 8B": transformers.LlamaConfig(**_text(4096, 14336, 32, 32, 8, 128_256)),
    "Llama 3.2 1B": transformers.LlamaConfig(**_text(2048, 8192, 16, 32, 8, 128_256), tie_word_embeddings=True),
}
PAIRS = (
    ("Qwen2-VL-7B", "Qwen2-VL-2B"),
    ("Qwen2.5-VL-7B", "Qwen2.5-VL-3B"),
    ("Qwen3-VL-8B", "Qwen3-VL-2B"),
    ("Qwen3-VL-8B", "SmolVLM2-2.2B"),
    ("SmolVLM2-2.2B", "SmolVLM2-500M"),
    ("Gemma 3 12B", "Gemma 3 4B"),
    ("LLaVA-OneVision 7B", "LLaVA-OneVision 0.5B"),
    ("Qwen2.5-7B", "Qwen2.5-0.5B"),
    ("Llama 3.1 8B", "Llama 3.2 1B"),
)


def page() -> str:
    """The page as text."""
    lines = [
        "# Models",
        "",
        "Generated by `python docs/make_models.py`; a test fails if it is out of date.",
        "",
        "## Families",
        "",
        "Each family can be teacher or student. Any other is refused before anything is loaded, with this list. To add one, write a",
        "row in `firstsight/families/__init__.py`, and a small class beside it if it differs from transformers' conventions.",
        "",
        "| family | `model_type` | images | `max_pixels` | padding-free rows |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        kinds = ", ".join(f"`{kind}`" for kind in family.model_types)
        images = "yes" if family.has_vision else "no: text rows"
        lines.append(
            f"| {family.name} | {kinds} | {images} | {family.limit_text} | {'yes' if family.packs else 'no'} |"
        )
    lines += [
        "",
        "Before the first batch of a dump or a training run, our logits are compared with the model's own on eight positions. Any",
        "model that scales or soft-caps its logits is refused there. Training leaves the comparison out, and says so, if the student is",
        "sharded (FSDP) with flash attention.",
        "",
        f"In a chat template that reads the clock, as Llama 3.2's does, it is always {PROMPT_DATE.day} {PROMPT_DATE:%B %Y},",
        "the date that this template takes itself where there is no clock: all prompts of a cache, of training and of evaluation have",
        "one date. Both plans and the dump say so.",
        "",
        "## Pairs",
        "",
        "Any family can be paired with any other; a pair with a text model takes only rows without images. If the two tokenizers",
        "differ, soft targets are aligned by the bytes of the answer,",
        "and other positions have hard labels. `make families` runs plan, dump, verify, training and evaluation on tiny random",
        "checkpoints of every family with itself, and of these mixed pairs:",
        "",
        *(f"- {_name(teacher)} -> {_name(student)}" for teacher, student in (*SUITE, *MIXED)),
        "",
        "## Memory of common pairs",
        "",
        "Estimated, not measured: the teacher in INT8 with 16,384 tokens per forward pass; the student with a micro-batch of two",
        "samples of 1,400 tokens, with gradient checkpointing. One LLaVA-OneVision image alone may take several times 1,400 tokens.",
        "",
        "| teacher | parameters | dump | student | parameters | fp32_master | bf16_kahan | LoRA, r = 16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for teacher, student in PAIRS:
        size = model_size(MODELS[teacher])
        shape = student_shape(MODELS[student], StudentSection(), activation_bytes=2)
        ways = [
            footprint(
                shape, mode, tokens=TOKENS, patches=PATCHES if shape.vision_layers else 0, gradient_checkpointing=True
            )
            for mode in ("fp32_master", "bf16_kahan", "lora")
        ]
        lines.append(
            f"| {teacher} | {count_text(size.total)} | {bytes_text(device_bytes(size, TeacherSection()))} | {student} | "
            f"{count_text(shape.trained)} | " + " | ".join(bytes_text(way.total) for way in ways) + " |"
        )
    return "\n".join(lines) + "\n"


def _name(kind: str) -> str:
    return next(family.name for family in FAMILIES if kind in family.model_types)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
