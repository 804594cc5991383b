"""Idefics3 and SmolVLM2: an image is scaled up to its longest edge and cut into tiles, each with a mark of its row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from firstsight.errors import ModelError
from firstsight.families.base import Family


class _WithoutVideo:
    """SmolVLM's own method asks the video processor for its defaults even if there are only images."""

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        from transformers import ProcessorMixin

        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Idefics3(Family):
    """Tiles of `max_image_size`, then the whole image once more."""

    image_settings: tuple[str, ...] = ("do_image_splitting", "max_image_size", "do_pad", "image_seq_len")
    limit_text: str = "longest edge, in whole tiles"
    processor_base: Any = _WithoutVideo
    shuffle: int = 4
    """Patches along each side that become one token (`scale_factor`)."""

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """The longest edge, in whole tiles."""
        images = processor.image_processor
        tile, edge = int(images.max_image_size["longest_edge"]), int(images.size["longest_edge"])
        largest = math.isqrt(max_pixels) // tile * tile
        if largest < tile:
            raise ModelError(
                f"{key}: {self.name} sees an image in tiles of {tile} x {tile} pixels; expected at least {tile**2:,}, got {max_pixels:,}"
            )
        images.size = type(images.size)(**{**dict(images.size), "longest_edge": min(edge, largest)})

    def patches_per_token(self, processor: Any) -> int:
        """Patches that are shuffled into one."""
        return self.shuffle**2

    def image_options(self, processor: Any) -> dict[str, Any]:
        """Rows and columns of the tiles are needed for the prompt."""
        return {"return_row_col_info": True}

    def model_inputs(self, made: dict[str, Any]) -> dict[str, Tensor]:
        """All but rows and columns."""
        return {name: value for name, value in made.items() if name not in ("rows", "cols")}

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The text of each image's tiles."""
        count = processor.image_processor.get_number_of_image_patches
        tiles = [count(height, width, {}) for width, height in sizes]
        made = {"rows": [[rows for _, rows, _ in tiles]], "cols": [[columns for _, _, columns in tiles]]}
        return tuple(processor.replace_image_token(made, index) for index in range(len(sizes)))
