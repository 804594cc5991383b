"""Gemma 3: every image is 256 tokens of one fixed size, and image tokens attend to each other both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from firstsight.errors import ModelError
from firstsight.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Gemma3(Family):
    """The template's image mark becomes a begin mark, the image tokens and an end mark."""

    token_types: str | None = "token_type_ids"
    limit_text: str = "refused below the fixed size"
    image_settings: tuple[str, ...] = ("image_seq_length",)

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """The size is fixed: it is allowed or it is not."""
        size = processor.image_processor.size
        if size["height"] * size["width"] > max_pixels:
            raise ModelError(
                f"{key}: {self.name} sees every image at {size['width']} x {size['height']} pixels, more than {max_pixels:,}; "
                "remove the key"
            )

    def patches_per_token(self, processor: Any) -> int:
        """4,096 patches are pooled to 256 tokens."""
        return 16

    def load_processor(self, directory: Path, config: Any, *, trust_remote_code: bool) -> Any:
        """The stock one, without pan and scan: its crops cannot be counted before an image is opened."""
        processor = super().load_processor(directory, config, trust_remote_code=trust_remote_code)
        if processor.image_processor.do_pan_and_scan:
            raise ModelError(
                f"{directory}: do_pan_and_scan of {self.name} is not supported; set it to false in preprocessor_config.json"
            )
        return processor

    def model_inputs(self, made: dict[str, Any]) -> dict[str, Tensor]:
        """All but the number of crops."""
        return {name: value for name, value in made.items() if name != "num_crops"}

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The same for every image."""
        return tuple(processor.replace_image_token({"num_crops": [0]}, 0) for _ in sizes)

    def image_token(self, processor: Any) -> str:
        """Not the template's mark."""
        token: str = processor.tokenizer.image_token
        return token
