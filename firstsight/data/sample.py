"""One sample: what every form of row becomes, and its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from PIL import Image

from firstsight.data.images import ImageSource, as_shown, image_digest, opened, upright_size


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question, its images and, where there is one, its answer."""

    id: str
    """A name for people: the row's own, with `#2`, `#3` where it is repeated; `file:line` where the row has none."""
    prompt: tuple[dict[str, Any], ...]
    """Messages before the answer, each `{"role", "content": [parts]}` with parts `{"type": "image"}` or
    `{"type": "text", "text"}`."""
    answer: str | None
    """Text of the closing assistant message; None: no ground truth."""
    images: tuple[ImageSource, ...]
    times: tuple[float, ...] | None
    """Seconds of the frames, where they are known."""
    category: str | None
    environment: str | None
    place: str
    """`file:line`, for messages."""
    options: tuple[str, ...] = ()
    """Texts of a multiple choice, A first; no part of the key: what the model sees is in the messages."""
    truths: tuple[str, ...] = ()
    """What several people answered, for VQA accuracy; likewise no part of the key."""

    @property
    def question(self) -> str:
        """Text of the last user message."""
        users = [m for m in self.prompt if m["role"] == "user"]
        parts = users[-1]["content"] if users else ()
        return " ".join(part["text"] for part in parts if part["type"] == "text")

    @property
    def earlier_answers(self) -> int:
        """Assistant messages before the closing one: the model sees them, and is not trained on them."""
        return sum(message["role"] == "assistant" for message in self.prompt)

    @property
    def key(self) -> str:
        """The identity of the content: 64 hex digits, sha256 over the canonical messages, the bytes of the images and their times.

        Paths and token ids are not part of it: a moved file keeps its key, an edited sample gets another one.
        """
        content = {
            "prompt": self.prompt,
            "answer": self.answer,
            "images": [image_digest(image) for image in self.images],
            "times": self.times,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def open_images(self) -> list[Image.Image]:
        """The images as RGB, upright, as an image viewer shows them.

        Raises:
            DataError: a file that is missing, no image, damaged, of a mode that cannot be shown, or larger than
                `images.MAX_IMAGE_PIXELS`.
        """
        return [self.open_image(image) for image in self.images]

    def open_image(self, image: ImageSource) -> Image.Image:
        """One of the images as RGB, upright. Raises as `open_images`."""
        with opened(image, self.place) as picture:
            return as_shown(picture)

    def image_sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image, upright, from the files' headers."""
        sizes = []
        for image in self.images:
            with opened(image, self.place) as picture:
                sizes.append(upright_size(picture))
        return sizes
