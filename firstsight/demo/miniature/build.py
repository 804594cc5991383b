"""Tokenizer, processor and untrained models of the miniature pair, in the shapes of Qwen2-VL-7B and Qwen2-VL-2B.

Like the real pair, both share one tokenizer, the teacher's head is padded further than the student's, and the student's
head is tied to its embedding.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from firstsight.demo.miniature.words import WORDS
from firstsight.demo.synth.captions import caption
from firstsight.demo.synth.questions import ask
from firstsight.demo.synth.scenes import CATEGORIES, ENVIRONMENTS, sample_clip
from firstsight.models.loading import save_weights

# Tokens without the padding rows, special ones included. The demo stores k = 64 of them per position.
VOCABULARY = 1152
TEACHER_ROWS = 1280
STUDENT_ROWS = 1216
# Pixels per image after the processor's resize: 112 x 112, one visual token per cell of the scene.
MODEL_PIXELS = 112 * 112
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# In the order in which Qwen2-VL has them after its ordinary tokens.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# How Qwen2 splits text before merging byte pairs: contractions, words with the space before them, single digits, the rest.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Gives the output of Qwen2-VL's own template: a default system turn, one turn per message, images and videos as single pads
# that the processor repeats, numbered on request (add_vision_id).
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' + seen.images | string + ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' + seen.videos | string + ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE with `VOCABULARY` tokens, trained on synthetic questions and a list of words; the same every time."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"] | {token: len(learned["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)},
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def _corpus() -> list[str]:
    rng = np.random.default_rng(20)
    lines: list[str] = ["You are a helpful assistant.", "system user assistant", *(["system\nuser\nassistant\n"] * 50)]
    for index in range(2000):
        category = CATEGORIES[index % len(CATEGORIES)]
        clip = sample_clip(rng, ENVIRONMENTS[index % len(ENVIRONMENTS)], category)
        lines.extend(ask(rng, clip, category))
        lines.extend(caption(rng, clip))
    return [*lines, *(f" {word}" for word in WORDS.split() for _ in range(3))]


def _text_config(
    rows: int, hidden: int, inner: int, layers: int, heads: int, key_value_heads: int
) -> dict[str, object]:
    return {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        # 16 rotary frequencies per head of 32: 4 for time, 6 for height, 6 for width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }


def _config(
    tokenizer: Qwen2Tokenizer, text: dict[str, object], vision_width: int, vision_depth: int, *, tied: bool
) -> Qwen2VLConfig:
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "im_end")}
    vision = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    special = {"bos_token_id": ids["endoftext"], "eos_token_id": ids["im_end"], "pad_token_id": ids["endoftext"]}
    return Qwen2VLConfig(
        text_config=text | special,
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": text["hidden_size"],
            "num_heads": vision_width // 32,
            "mlp_ratio": 4,
        },
        image_token_id=vision["image_pad"],
        video_token_id=vision["video_pad"],
        vision_start_token_id=vision["vision_start"],
        vision_end_token_id=vision["vision_end"],
        tie_word_embeddings=tied,
    )


def build_teacher(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2VLForConditionalGeneration:
    """The untrained teacher, fp32."""
    text = _text_config(TEACHER_ROWS, hidden=128, inner=384, layers=4, heads=4, key_value_heads=2)
    return _model(_config(tokenizer, text, vision_width=96, vision_depth=3, tied=False), seed)


def build_student(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2VLForConditionalGeneration:
    """The untrained student, fp32."""
    text = _text_config(STUDENT_ROWS, hidden=64, inner=192, layers=3, heads=2, key_value_heads=1)
    return _model(_config(tokenizer, text, vision_width=64, vision_depth=2, tied=True), seed)


def _model(config: Qwen2VLConfig, seed: int) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    text = config.text_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.bos_token_id],
        pad_token_id=text.pad_token_id,
    )
    return model


def save_pair_member(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    directory: Path,
    *,
    max_pixels: int = MODEL_PIXELS,
) -> None:
    """Write a checkpoint directory as Qwen2-VL's are: bf16 weights, configs, tokenizer, image processor, chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(model, directory, torch.bfloat16)
    tokenizer.save_pretrained(directory)
    image_processor = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": max_pixels,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2) + "\n")
