"""LLaVA-OneVision: a single image in tiles of the best of many resolutions; several images once each, without tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstsight.errors import ModelError
from firstsight.families.base import Family


@dataclass(frozen=True, kw_only=True)
class LlavaOnevision(Family):
    """The resolutions are also in the model's configuration, so they are not changed."""

    limit_text: str = "refused below the largest resolution"
    image_settings: tuple[str, ...] = (
        "image_grid_pinpoints", "do_pad", "num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio",
    )  # fmt: skip

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """The resolutions are fixed: they are allowed or they are not."""
        height, width = max(processor.image_processor.image_grid_pinpoints, key=lambda size: size[0] * size[1])
        if height * width > max_pixels:
            raise ModelError(
                f"{key}: {self.name} sees images at up to {width} x {height} pixels, more than {max_pixels:,}; remove the key"
            )

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """A single image is counted by its tiles."""
        if len(sizes) == 1:
            return super().image_texts(processor, sizes)
        made = {"batch_num_images": [len(sizes)]}
        return tuple(processor.replace_image_token(made, index) for index in range(len(sizes)))
