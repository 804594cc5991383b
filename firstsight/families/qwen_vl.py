"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size in patches, M-RoPE."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstsight.data.sample import PixelLimits
from firstsight.families.base import Family


@dataclass(frozen=True, kw_only=True)
class QwenVL(Family):
    """An image of h x w patches is h w / merge_size^2 tokens."""

    token_types: str | None = "mm_token_type_ids"
    packs: bool = True
    limit_text: str = "pixels after scaling"

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """Set the upper limit of the processor's `size`, which is in pixels."""
        images = processor.image_processor
        largest = min(max_pixels, images.size["longest_edge"])
        least = min(images.size["shortest_edge"], largest)
        images.size = type(images.size)(**{**dict(images.size), "longest_edge": largest, "shortest_edge": least})

    def limited(self, processor: Any, limits: PixelLimits) -> Any:
        """With the smaller of both upper limits, and the image's own lower limit."""
        size = processor.image_processor.size
        most = size["longest_edge"] if limits.most is None else min(limits.most, size["longest_edge"])
        if limits.least is not None and limits.least > most:
            raise ValueError(
                f"min_pixels = {limits.least:,} of an image is more than the model's max_pixels = {most:,}"
            )
        least = min(size["shortest_edge"] if limits.least is None else limits.least, most)
        made = object.__new__(type(processor))  # copy.copy would make a new processor from the values of its files
        made.__dict__.update(processor.__dict__)
        made.image_processor = copy.copy(processor.image_processor)
        made.image_processor.size = type(size)(**{**dict(size), "longest_edge": most, "shortest_edge": least})
        return made

    def patches_per_token(self, processor: Any) -> int:
        """Patches that are merged into one token."""
        return int(processor.image_processor.merge_size) ** 2

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """As many image tokens as merged patches."""
        images = processor.image_processor
        patches = [int(images.get_number_of_image_patches(height, width, {})) for width, height in sizes]
        return tuple(processor.image_token * (count // images.merge_size**2) for count in patches)
