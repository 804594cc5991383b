"""A random pair in the shapes of Qwen2-VL, data sets with shared images, and recipes for them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from firstsight.recipe import Recipe, load_recipe

WORDS = ["red", "blue", "lamp", "table", "near", "the", "small", "door", "walks", "left", "two", "cups", "green"]


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Writes data and recipes into a folder of a test."""

    directory: Path
    models: Path

    def rows(self, count: int, *, questions: int = 2, start: int = 0, answered: bool = True) -> list[dict[str, object]]:
        """Samples with `questions` of them about each image; the images are drawn."""
        rows: list[dict[str, object]] = []
        (self.directory / "data").mkdir(exist_ok=True)
        for index in range(start, start + count):
            rng = np.random.default_rng(index)
            image = f"{index // questions}.png"
            path = self.directory / "data" / image
            if not path.exists():
                pixels = np.random.default_rng(index // questions).integers(
                    0, 256, (56, 56 + 28 * (index // questions % 2), 3)
                )
                Image.fromarray(pixels.astype(np.uint8)).save(path)
            question = " ".join(rng.choice(WORDS, 3 + index % 9))
            messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            if answered:
                answer = " ".join(rng.choice(WORDS, 1 + index % 6))
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            rows.append({"id": f"s{index}", "messages": messages, "images": [image]})
        return rows

    def recipe(self, rows: list[dict[str, object]], *, name: str = "recipe", **sections: dict[str, object]) -> Path:
        """A recipe file over these rows; the last two are the validation samples."""
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        for split, part in (("train", rows[:-2]), ("validation", rows[-2:])):
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        content: dict[str, dict[str, object]] = {
            "teacher": {
                "model": str(self.models / "teacher"),
                "quantization": "none",
                "dtype": "float32",
                "device_map": "cpu",
                "batch_tokens": 128,
            },
            "student": {"model": str(self.models / "student")},
            "cache": {"top_k": 16, "unit_positions": 12},
        }
        for section, values in sections.items():
            content.setdefault(section, {}).update(values)
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def load(self, rows: list[dict[str, object]], **sections: dict[str, object]) -> Recipe:
        """The recipe of `recipe`, loaded."""
        return load_recipe(self.recipe(rows, name="recipe", **sections))


@pytest.fixture
def workshop(tmp_path: Path, models: Path) -> Workshop:
    return Workshop(tmp_path, models)
