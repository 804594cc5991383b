"""Language models without images: a tokenizer with a chat template, and a decoder with a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from firstsight.errors import ModelError
from firstsight.families.base import Family, Part, Pictures


@dataclass(frozen=True, kw_only=True)
class Text(Family):
    """Its processor is its tokenizer."""

    has_vision = False

    def load_class(self) -> Any:
        """A causal language model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def load_processor(self, directory: Path, config: Any, *, trust_remote_code: bool) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """Refused: there is nothing to limit."""
        raise ModelError(f"{key}: {self.name} sees no images; remove the key")

    def image_inputs(self, processor: Any, images: Sequence[Image.Image]) -> Pictures:
        """Empty; images are refused."""
        if images:
            raise ModelError(f"{self.name} sees no images, but the sample has {len(images)}")
        return Pictures({}, ())

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """Empty; images are refused."""
        if sizes:
            raise ModelError(f"{self.name} sees no images, but the sample has {len(sizes)}")
        return ()

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each content as one string, since templates of language models have no parts."""
        return [
            {**message, "content": "".join(part["text"] for part in message["content"] if part["type"] == "text")}
            for message in messages
        ]

    def tokenize_prompt(self, processor: Any, text: str) -> list[int]:
        """Ids as `tokenizer.apply_chat_template(..., tokenize=True)` makes them: the template has rendered everything."""
        ids: list[int] = processor(text, add_special_tokens=False)["input_ids"]
        return ids

    def part(self, parameter: str) -> Part:
        """All of it is the language model."""
        return "text"
