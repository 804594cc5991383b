"""A random pair with a full-size vocabulary, and data for it: what `benchmarks.dump` runs on.

The tokenizer is the miniature pair's, filled up to Qwen2-VL's 151,657 tokens with words that no text has, so that alignment,
head and top-k see a vocabulary of the real size. Shapes are those of Qwen2-VL-2B with fewer layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from firstsight.demo.miniature.build import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer, save_pair_member
from firstsight.demo.miniature.words import WORDS
from firstsight.recipe import Recipe, load_recipe

TOKENS = 151_657
STUDENT_ROWS = 151_936
PIXELS = ((448, 448), (448, 336))
"""Width and height of the images, in turns: 256 and 192 visual tokens."""
MAX_PIXELS = max(width * height for width, height in PIXELS)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Qwen2-VL with heads of 128."""

    rows: int
    """Rows of the head, V."""
    hidden: int
    intermediate: int
    layers: int
    vision_width: int
    vision_depth: int
    tied: bool = False
    """The head is the embedding."""


@dataclass(frozen=True, kw_only=True)
class Shape(ModelShape):
    """Sizes of the teacher and the data."""

    samples: int
    questions: int
    """Questions per image."""
    batch_tokens: int


def full_tokenizer() -> Qwen2Tokenizer:
    """The miniature tokenizer with as many tokens as Qwen2-VL's."""
    model = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    vocab = {token: index for token, index in model["vocab"].items() if token not in SPECIAL_TOKENS}
    vocab |= {f"zq{index:06d}": index for index in range(len(vocab), TOKENS - len(SPECIAL_TOKENS))}
    return Qwen2Tokenizer(
        vocab=vocab | {token: len(vocab) + index for index, token in enumerate(SPECIAL_TOKENS)},
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def model_config(tokenizer: Qwen2Tokenizer, shape: ModelShape, rows: int) -> Qwen2VLConfig:
    """Qwen2-VL with heads of 128 and six query heads to each key-value head, as in the 2B."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "im_end")}
    heads = shape.hidden // 128
    return Qwen2VLConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 6),
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.hidden,
            "num_heads": shape.vision_width // 80,
            "mlp_ratio": 4,
        },
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
            for name, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
        tie_word_embeddings=shape.tied,
    )


def write_pair(directory: Path, shape: Shape) -> None:
    """Write the directories `teacher`, with random weights, and `student`, without weights, since no dump reads them."""
    tokenizer = full_tokenizer()
    torch.manual_seed(0)
    teacher = Qwen2VLForConditionalGeneration(model_config(tokenizer, shape, shape.rows))
    save_pair_member(teacher, tokenizer, directory / "teacher", max_pixels=MAX_PIXELS)
    student = directory / "student"
    tokenizer.save_pretrained(student)
    model_config(tokenizer, shape, STUDENT_ROWS).save_pretrained(student)
    name = "preprocessor_config.json"
    (student / name).write_bytes((directory / "teacher" / name).read_bytes())


def write_data(directory: Path, shape: Shape) -> None:
    """Write questions of 4 to 63 words about random images, answers of 8 to 19 words; one row in ten is a validation sample."""
    rng = np.random.default_rng(0)
    words = [word for word in WORDS.split() if word.isascii()]
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(shape.samples):
        picture = index // shape.questions
        name = f"{picture}.png"
        if index % shape.questions == 0:
            width, height = PIXELS[picture % len(PIXELS)]
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(directory / name)
        question = " ".join(rng.choice(words, rng.integers(4, 64)))
        answer = " ".join(rng.choice(words, rng.integers(8, 20)))
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        rows.append({"id": f"s{index}", "messages": messages, "images": [name]})
    cut = max(1, shape.samples // 10)
    for split, part in (("train", rows[:-cut]), ("validation", rows[-cut:])):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def write_recipe(directory: Path, shape: Shape, unit_positions: int) -> Recipe:
    """The recipe of this pair and this data, loaded."""
    path = directory / "recipe.yaml"
    content = {
        "teacher": {
            "model": "teacher",
            "quantization": "none",
            "dtype": "float32",
            "device_map": "cpu",
            "max_pixels": MAX_PIXELS,
            "batch_tokens": shape.batch_tokens,
        },
        "student": {"model": "student", "max_pixels": MAX_PIXELS},
        "cache": {"unit_positions": unit_positions},
    }
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path)
