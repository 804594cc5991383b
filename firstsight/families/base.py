"""The interface of a model family, and the conventions of transformers that most families follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from firstsight.data.sample import PixelLimits
from firstsight.errors import ModelError
from firstsight.families.clock import template_of_one_day

Part = Literal["vision", "projector", "text"]
Section = Literal["teacher", "student"]

_VISION = frozenset({"visual", "vision_tower", "vision_model"})
_PROJECTOR = frozenset({"merger", "deepstack_merger_list", "multi_modal_projector", "connector", "image_newline"})


class Pictures(NamedTuple):
    """All images of a sample as a model's image processor makes them."""

    inputs: dict[str, Tensor]
    """Inputs of the model by name. Those of several samples are concatenated along their first axis, shorter ones padded
    with zeros along the others."""
    texts: tuple[str, ...]
    """The text of each image in the prompt."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of vision-language models that follows the conventions of transformers.

    A family that differs overrides the method in question.
    """

    name: str
    """As people call it."""
    model_types: tuple[str, ...]
    """`config.model_type` of its models."""
    token_types: str | None = None
    """The model's input that marks every token as image (1) or text (0); None: it has none."""
    one_feature_per_image: bool = False
    """The vision tower gives one tensor per image and nothing else, and the backbone takes it in place of pixels, so that one pass
    serves all questions about an image."""
    packs: bool = False
    """Positions can be made sample by sample (`get_rope_index`), so that several samples share a row without padding."""
    limit_text: str = "refused"
    """What `max_pixels` does, in a few words."""
    image_settings: tuple[str, ...] = ()
    """Attributes of image processor and processor that decide what a model sees, besides those that all families have."""

    processor_base: Any = None
    """Mixed in before the processor class if that takes a video processor and torchvision is missing."""

    has_vision = True

    def load_class(self) -> Any:
        """The class whose `from_pretrained` loads a model with its head."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def load_processor(self, directory: Path, config: Any, *, trust_remote_code: bool) -> Any:
        """The model's own processor. Raises OSError, ValueError or ImportError if there is none."""
        from firstsight.families.processors import stills_class

        loader = stills_class(config, self.processor_base)
        return loader.from_pretrained(directory, trust_remote_code=trust_remote_code)

    def limit_pixels(self, processor: Any, max_pixels: int, key: str) -> None:
        """Make the processor scale images down to at most `max_pixels`; it never makes them larger.

        Args:
            processor: changed in place.
            max_pixels: of one image.
            key: of the recipe, for the error.

        Raises:
            ModelError: the family's image sizes cannot be changed, and they are larger.
        """
        raise ModelError(f"{key}: the image size of {self.name} cannot be changed; remove the key")

    def limited(self, processor: Any, limits: PixelLimits) -> Any:
        """A processor for an image that has limits of its own, besides those of the model.

        Args:
            processor: left as it is.
            limits: of the image.

        Raises:
            ValueError: they contradict the model's, or the family's image sizes cannot be changed.
        """
        raise ValueError(f"min_pixels and max_pixels of an image have no effect on {self.name}")

    def patches_per_token(self, processor: Any) -> int:
        """About how many patches of the vision tower become one image token; for estimates of time and memory."""
        return 1

    def image_options(self, processor: Any) -> dict[str, Any]:
        """What the image processor is called with, besides the images."""
        return {}

    def image_inputs(self, processor: Any, images: Sequence[Image.Image]) -> Pictures:
        """All images of one sample, RGB, as inputs of the model.

        Threads may call this at the same time, unlike everything with a tokenizer in it.
        """
        made = processor.image_processor(images=[list(images)], return_tensors="pt", **self.image_options(processor))
        texts = tuple(processor.replace_image_token(made, index) for index in range(len(images)))
        return Pictures(self.model_inputs(dict(made)), texts)

    def model_inputs(self, made: dict[str, Any]) -> dict[str, Tensor]:
        """The part of the image processor's output that the model takes."""
        return made

    def image_texts(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The texts in a prompt of images of these sizes (width, height); no image is opened."""
        counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
        return tuple(self.image_token(processor) * int(count) for count in counts.num_image_tokens)

    def placeholder(self, processor: Any) -> str:
        """What the chat template puts where an image goes."""
        token: str = processor.image_token
        return token

    def image_token(self, processor: Any) -> str:
        """The token that an image's features replace."""
        return self.placeholder(processor)

    def image_token_id(self, processor: Any) -> int:
        """The id of `image_token`."""
        token_id: int = processor.tokenizer.convert_tokens_to_ids(self.image_token(processor))
        return token_id

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages, each with a list of parts, in the form that the chat template takes."""
        return list(messages)

    def render(self, processor: Any, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The conversation as text, the same on every day."""
        text: str = processor.apply_chat_template(
            self.messages(messages),
            chat_template=template_of_one_day(processor),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text

    def tokenize_prompt(self, processor: Any, text: str) -> list[int]:
        """Ids of a rendered prompt, as `processor.apply_chat_template(..., tokenize=True)` makes them: a template that has
        rendered the beginning of the sequence gets no second one.
        """
        tokenizer = processor.tokenizer
        rendered = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids: list[int] = tokenizer(text, add_special_tokens=not rendered)["input_ids"]
        return ids

    def part(self, parameter: str) -> Part:
        """Which part of the model a parameter belongs to, by its name; a head and an embedding are `text`."""
        names = set(parameter.split("."))
        if names & _PROJECTOR:
            return "projector"
        return "vision" if names & _VISION else "text"
