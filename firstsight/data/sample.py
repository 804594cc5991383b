"""A sample, which every form of row becomes, and its key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from PIL import Image

from firstsight.data.images import ImageSource, as_shown, image_digest, opened, upright_size
from firstsight.errors import DataError


class PixelLimits(NamedTuple):
    """The limits that an image part states, in pixels after scaling."""

    least: int | None
    most: int | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation, its images and its answers."""

    id: str
    """A name for people: the row's own, with `#2`, `#3` if it is repeated; `file:line` if the row has none."""
    messages: tuple[dict[str, Any], ...]
    """The conversation, each message `{"role", "content": [parts]}` with parts `{"type": "text", "text"}` or `{"type": "image"}`,
    the latter with `min_pixels` and `max_pixels` if the row limits it. Every assistant message is an answer. One that closes the
    conversation has a single text part."""
    images: tuple[ImageSource, ...]
    times: tuple[float, ...] | None
    """Times of the frames in seconds, if known."""
    category: str | None
    environment: str | None
    place: str
    """`file:line`, for messages."""
    options: tuple[str, ...] = ()
    """Texts of a multiple choice, A first; not part of the key, since what the model sees is in the messages."""
    truths: tuple[str, ...] = ()
    """What several people answered, for VQA accuracy; not part of the key either."""

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """The messages before the closing answer; all of them if the last one is not an answer."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    @property
    def answer(self) -> str | None:
        """Text of the closing answer; None: no ground truth."""
        return message_text(self.messages[-1]) if self.messages[-1]["role"] == "assistant" else None

    @property
    def answers(self) -> tuple[str, ...]:
        """Texts of all answers, in order."""
        return tuple(message_text(message) for message in self.messages if message["role"] == "assistant")

    @property
    def earlier_answers(self) -> int:
        """Answers before the closing one."""
        return sum(message["role"] == "assistant" for message in self.prompt)

    def asked(self) -> list[Sample]:
        """The conversation up to each of its answers, which a model is asked to give. If the last message is not an answer,
        the sample itself comes last.
        """
        ends = [index for index, message in enumerate(self.messages, start=1) if message["role"] == "assistant"]
        if self.answer is None:
            ends.append(len(self.messages))
        return [self._until(end, number, len(ends)) for number, end in enumerate(ends, start=1)]

    def _until(self, end: int, number: int, count: int) -> Sample:
        if number == count:
            return self if count == 1 else replace(self, id=f"{self.id} answer {number}")
        messages = self.messages[:end]
        images = sum(part["type"] == "image" for message in messages for part in message["content"])
        return replace(
            self,
            id=f"{self.id} answer {number}",
            messages=messages,
            images=self.images[:images],
            times=None if self.times is None else self.times[:images],
            options=(),  # they belong to the last question
            truths=(),
        )

    @property
    def question(self) -> str:
        """Text of the last user message."""
        users = [m for m in self.prompt if m["role"] == "user"]
        parts = users[-1]["content"] if users else ()
        return " ".join(part["text"] for part in parts if part["type"] == "text")

    @property
    def key(self) -> str:
        """The identity of the content: 64 hex digits, sha256 over the canonical messages, the bytes of the images and their times.

        Paths and token ids are not part of it: moving a file keeps the key, editing a sample changes it.
        """
        content = {
            "prompt": self.prompt,
            "answer": self.answer,
            "images": [image_digest(image) for image in self.images],
            "times": self.times,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def image_limits(self) -> tuple[PixelLimits | None, ...]:
        """The limits of each image; None: no limits."""
        parts = [part for message in self.messages for part in message["content"] if part["type"] == "image"]
        return tuple(
            PixelLimits(part.get("min_pixels"), part.get("max_pixels")) if len(part) > 1 else None for part in parts
        )

    @property
    def image_marks(self) -> tuple[str, ...]:
        """A mark of each image as a model sees it: equal marks mean equal pixels."""
        return tuple(
            image_digest(image) if limits is None else f"{image_digest(image)} {limits.least} {limits.most}"
            for image, limits in zip(self.images, self.image_limits, strict=True)
        )

    def check_answers(self) -> None:
        """Raise DataError for an answer before the closing one that cannot be trained on; the closing one is checked with its row."""
        for number, message in enumerate((m for m in self.prompt if m["role"] == "assistant"), start=1):
            if any(part["type"] == "image" for part in message["content"]):
                fault = "holds an image"
            elif not message_text(message).strip():
                fault = "is empty"
            else:
                continue
            raise DataError(
                f"{self.place}: sample {self.id!r}: answer {number} of {len(self.answers)} {fault}; change the row; data.turns: last "
                "trains only on the last answer"
            )

    def open_images(self) -> list[Image.Image]:
        """The images as RGB, upright, as an image viewer shows them.

        Raises:
            DataError: a file that was not found, is not an image, is damaged, has a mode that cannot be shown, or is larger than
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


def message_text(message: dict[str, Any]) -> str:
    """The texts of a message's parts."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")
