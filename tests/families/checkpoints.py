"""A tiny random checkpoint of every family, built from its configuration: weights, tokenizer, processor, chat template.

directory = build("smolvlm", tmp_path / "student", seed=1)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from templates import CHATML, GEMMA, LLAMA, LLAVA, QWEN3, SMOLVLM
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is it? A red mug on the desk. Where am I? You are in the kitchen, at the counter.",
    "The small lamp is near the blue door. Nothing changed. Two cups are left of the table.",
    "system user assistant model User: Assistant: You are a helpful assistant.",
] * 4

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def byte_level(special: tuple[str, ...], size: int = 340) -> Tokenizer:
    """A byte-level BPE, as of GPT-2, Qwen and Llama 3."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


def pieces(special: tuple[str, ...]) -> Tokenizer:
    """A BPE over pieces with a mark for the space, as of Gemma."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=[*special, "<unk>", *fallback], show_progress=False, max_token_length=8
    )
    bpe.train_from_iterator(CORPUS, trainer)
    saved = json.loads(
        bpe.to_str()
    )  # byte pieces come before all others, as in published tokenizers, but are not special
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in fallback]
    return Tokenizer.from_str(json.dumps(saved))


def build(kind: str, directory: Path, *, seed: int = 0, rows: int = 0, **text: Any) -> Path:
    """Write a checkpoint of a `model_type`.

    Args:
        kind: the `model_type`.
        directory: to be made.
        seed: of the weights.
        rows: rows of the head beyond the tokenizer.
        text: overrides of the language model's configuration.
    """
    directory.mkdir(parents=True)
    tokenizer, processor, config, name = BUILDERS[kind]({**TEXT, **text}, rows)
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # logits of some size: the untrained ones are all nearly equal
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file, content in processor.items():
        (directory / file).write_text(json.dumps(content))
    return directory


def _tokenizer(backend: Tokenizer, template: str, *, adds_bos: bool = False, **special: Any) -> PreTrainedTokenizerFast:
    if adds_bos:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, clean_up_tokenization_spaces=False, **special
    )


def _images(name: str, processor: str, **options: Any) -> dict[str, Any]:
    return {"image_processor_type": name, "processor_class": processor, **options}


def _chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    return _tokenizer(
        byte_level((*CHATML_TOKENS, *VISION_TOKENS)), template, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _ids(tokenizer: Any, **names: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen_vl(kind: str, prefix: str) -> Callable[..., tuple[Any, ...]]:
    def make(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
        tokenizer = _chatml()
        ids = _ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        )
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        text = {
            **text,
            "vocab_size": len(tokenizer) + rows,
            "rope_parameters": rope,
            "eos_token_id": tokenizer.eos_token_id,
        }
        vision: dict[str, Any] = {
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        if kind == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
        elif kind == "qwen2_5_vl":
            vision |= {
                "hidden_size": 32,
                "out_hidden_size": text["hidden_size"],
                "intermediate_size": 48,
                "fullatt_block_indexes": [1],
                "window_size": 56,
            }
        else:
            vision |= {
                "hidden_size": 32,
                "out_hidden_size": text["hidden_size"],
                "intermediate_size": 48,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 64,
            }
            text |= {"head_dim": 16}
        config = getattr(transformers, f"{prefix}Config")(
            text_config=text, vision_config=vision, tie_word_embeddings=True, **ids
        )
        images = _images(
            "Qwen2VLImageProcessor",
            f"{prefix}Processor",
            patch_size=14,
            temporal_patch_size=2,
            merge_size=2,
            min_pixels=28 * 28,
            max_pixels=112 * 112,
        )
        return tokenizer, {"preprocessor_config.json": images}, config, f"{prefix}ForConditionalGeneration"

    return make


def _idefics3(prefix: str, image_class: str) -> Callable[..., tuple[Any, ...]]:
    def make(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
        marks = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
        special = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *marks)
        tokenizer = _tokenizer(
            byte_level(special, 380),
            SMOLVLM,
            bos_token="<|im_start|>",
            eos_token="<end_of_utterance>",
            pad_token="<|im_start|>",
        )
        text = {
            **text,
            "model_type": "llama",
            "vocab_size": len(tokenizer) + rows,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = getattr(transformers, f"{prefix}Config")(
            text_config=text,
            vision_config=SIGLIP,
            scale_factor=2,
            tie_word_embeddings=False,
            **_ids(tokenizer, image_token_id="<image>"),
        )
        images = _images(
            image_class,
            f"{prefix}Processor",
            size={"longest_edge": 112},
            max_image_size={"longest_edge": 56},
            do_image_splitting=True,
            do_pad=True,
        )
        files = {
            "preprocessor_config.json": images,
            "processor_config.json": {"processor_class": f"{prefix}Processor", "image_seq_len": 4},
        }
        return tokenizer, files, config, f"{prefix}ForConditionalGeneration"

    return make


def _gemma3(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
    special = (
        "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
        "<image_soft_token>",
    )  # fmt: skip
    tokenizer = _tokenizer(
        pieces(special),
        GEMMA,
        adds_bos=True,
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    text = {
        **text,
        "vocab_size": len(tokenizer) + rows,
        "head_dim": 16,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        **_ids(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    images = _images("Gemma3ImageProcessor", "Gemma3Processor", size={"height": 56, "width": 56})
    files = {
        "preprocessor_config.json": images,
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
    return tokenizer, files, config, "Gemma3ForConditionalGeneration"


def _llava_onevision(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
    tokenizer = _tokenizer(
        byte_level((*CHATML_TOKENS, "<image>", "<video>")), LLAVA, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    points = [[56, 56], [56, 112], [112, 56], [112, 112]]
    text = {**text, "model_type": "qwen2", "vocab_size": len(tokenizer) + rows, "eos_token_id": tokenizer.eos_token_id}
    vision = {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
    config = transformers.LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_grid_pinpoints=points,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    images = _images(
        "LlavaOnevisionImageProcessor",
        "LlavaOnevisionProcessor",
        size={"height": 56, "width": 56},
        image_grid_pinpoints=points,
    )
    files = {
        "preprocessor_config.json": images,
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
    }
    return tokenizer, files, config, "LlavaOnevisionForConditionalGeneration"


def _llama(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = _tokenizer(
        byte_level(special),
        LLAMA,
        adds_bos=True,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )
    config = transformers.LlamaConfig(**text, vocab_size=len(tokenizer) + rows, eos_token_id=tokenizer.eos_token_id)
    return tokenizer, {}, config, "LlamaForCausalLM"


def _qwen_text(prefix: str, template: str) -> Callable[..., tuple[Any, ...]]:
    def make(text: dict[str, Any], rows: int) -> tuple[Any, ...]:
        tokenizer = _chatml(template)
        more = {"head_dim": 16} if prefix == "Qwen3" else {}
        config = getattr(transformers, f"{prefix}Config")(
            **text,
            **more,
            vocab_size=len(tokenizer) + rows,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
        return tokenizer, {}, config, f"{prefix}ForCausalLM"

    return make


BUILDERS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "qwen2_vl": _qwen_vl("qwen2_vl", "Qwen2VL"),
    "qwen2_5_vl": _qwen_vl("qwen2_5_vl", "Qwen2_5_VL"),
    "qwen3_vl": _qwen_vl("qwen3_vl", "Qwen3VL"),
    "smolvlm": _idefics3("SmolVLM", "SmolVLMImageProcessor"),
    "idefics3": _idefics3("Idefics3", "Idefics3ImageProcessor"),
    "gemma3": _gemma3,
    "llava_onevision": _llava_onevision,
    "llama": _llama,
    "qwen2": _qwen_text("Qwen2", CHATML),
    "qwen3": _qwen_text("Qwen3", QWEN3),
}
VISION = tuple(kind for kind in BUILDERS if kind not in ("llama", "qwen2", "qwen3"))
