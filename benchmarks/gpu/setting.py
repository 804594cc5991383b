"""What the parts share: the pair on disk without its weights, data, recipe, encoded samples, and models in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.dump_setup import ModelShape, full_tokenizer, model_config
from benchmarks.gpu.board import Board, free_memory
from benchmarks.gpu.models import build, quantize, reach_outliers
from benchmarks.gpu.sizes import Sizes
from firstsight.data.samples import Sample, load_samples
from firstsight.demo.miniature.build import IMAGE_MEAN, IMAGE_STD, build_tokenizer
from firstsight.demo.miniature.words import WORDS
from firstsight.models.loading import load_config
from firstsight.pair import Pair, load_pair
from firstsight.prompting import Encoded
from firstsight.recipe import Recipe, load_recipe

REFERENCE = Path(__file__).parents[2] / "recipes" / "qwen2vl-7b-to-2b.yaml"
_QUESTION_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run.

    Args:
        board: collects the rows.
        sizes: sizes of models, data and runs.
        device: device of all models.
        directory: where files are written.
    """

    board: Board
    sizes: Sizes
    device: torch.device
    directory: Path

    @property
    def on_gpu(self) -> bool:
        """Whether memory and time are a GPU's."""
        return self.device.type == "cuda"

    def recipe(self, *changes: str) -> Recipe:
        """The reference recipe for this pair and this data, with `section.key=value` changes."""
        self._written  # noqa: B018 the files exist from here on
        entries = () if "cache.targets=exact" in changes else (f"cache.top_k={self.sizes.top_k}",)
        return load_recipe(self.directory / "recipe.yaml", (*entries, *changes))

    @cached_property
    def pair(self) -> Pair:
        """Processors, tokenizers, alignment."""
        return load_pair(self.recipe())

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples of the training file."""
        recipe = self.recipe()
        return load_samples(recipe.source("train"))

    def encoded(self, count: int) -> list[Encoded]:
        """The first samples as inputs of both models, which see the same pixels."""
        return [self.pair.student.encode(sample) for sample in self.samples[:count]]

    def model(self, name: str) -> Any:
        """`teacher-int8`, `teacher-bf16`, `student-bf16`, `student-int8`, `student-nf4`; kept in memory.

        A model that is trained is made by `student`, since training changes it.
        """
        if name not in self._models:
            role, kind = name.split("-")
            model = build(self._config(role), torch.bfloat16, self.device)
            reach_outliers(model)
            model.requires_grad_(False)
            if kind in ("int8", "nf4"):
                quantize(model, kind)  # type: ignore[arg-type]
            self._models[name] = model
        free_memory()
        return self._models[name]

    def student(self, dtype: torch.dtype, attention: str = "sdpa") -> Any:
        """A new student to train."""
        model = build(self._config("student"), dtype, self.device, attention)
        model.config.use_cache = False
        return model

    def keep(self, *names: str) -> None:
        """Forget all models except these."""
        for name in [name for name in self._models if name not in names]:
            del self._models[name]
        free_memory()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A model's inputs on its device."""
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {}

    def _config(self, role: str) -> Any:
        recipe = self.recipe()
        return load_config(self.directory / role, recipe.teacher if role == "teacher" else recipe.student)

    @cached_property
    def _written(self) -> bool:
        sizes = self.sizes
        tokenizer = full_tokenizer() if sizes.whole_tokenizer else build_tokenizer()
        for role, shape in (("teacher", sizes.teacher), ("student", sizes.student)):
            _write_member(self.directory / role, tokenizer, shape, sizes.max_pixels)
        most = max(tokens * passes for tokens, passes in sizes.dumps)
        count = most // _visual_tokens(sizes) + 2 * sizes.answers + 8
        _write_data(self.directory / "data", tokenizer, sizes, count)
        content = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
        content["teacher"] |= {"model": "teacher", "max_pixels": sizes.max_pixels}
        content["student"] |= {"model": "student", "max_pixels": sizes.max_pixels}
        (self.directory / "recipe.yaml").write_text(yaml.safe_dump(content))
        return True


def _write_member(directory: Path, tokenizer: Any, shape: ModelShape, max_pixels: int) -> None:
    """Write a checkpoint directory without the model's weights, which are made on the device."""
    directory.mkdir(parents=True)
    tokenizer.save_pretrained(directory)
    model_config(tokenizer, shape, shape.rows).save_pretrained(directory)
    save_file({"none": torch.zeros(1)}, directory / "model.safetensors")
    image_processor = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": max_pixels,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(image_processor))


def _visual_tokens(sizes: Sizes) -> int:
    """About as many as an image has, never more."""
    width, height = sizes.picture
    return int(0.9 * min(sizes.max_pixels, width * height)) // 28**2


def _write_data(directory: Path, tokenizer: Any, sizes: Sizes, count: int) -> None:
    """Write rows of an image, a question and an answer of exactly `answer_tokens` tokens; one row is for validation."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    words = [word for word in WORDS.split() if len(tokenizer(f" {word}")["input_ids"]) == 1]
    width, height = sizes.picture
    grain = rng.normal(0, 6, (height, width, 3))  # a smooth image would be decoded faster than a photograph

    def picture(index: int) -> None:
        coarse = np.random.default_rng(index).integers(0, 256, (9, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        pixels = (smooth + np.roll(grain, 97 * index, axis=1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{index}.jpg", quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(picture, range(count)))
    rows = []
    for index in range(count):
        content = [{"type": "image"}, {"type": "text", "text": " ".join(rng.choice(words, _QUESTION_WORDS))}]
        answer = _answer(tokenizer, words, sizes.answer_tokens - 1, rng)
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"id": f"s{index}", "messages": messages, "images": [f"{index}.jpg"]}) + "\n")
    (directory / "train.jsonl").write_text("".join(rows[1:]))
    (directory / "validation.jsonl").write_text(rows[0])


def _answer(tokenizer: Any, words: Sequence[str], tokens: int, rng: np.random.Generator) -> str:
    first = str(rng.choice(words))
    rest = tokens - len(tokenizer(first)["input_ids"])
    return " ".join([first, *rng.choice(words, rest)])
