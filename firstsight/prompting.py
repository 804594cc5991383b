"""From a sample to model inputs: the model's own chat template and processor, and where the answer is.

Both phases go through this code, so the teacher's rows and the student's rows are found the same way. The row of a
token sits at the position before it: for an answer of P tokens (end of turn included) after a prompt of `p` tokens the
answer positions are p - 1 ... p + P - 2.

Prompt and answer are tokenised apart, because a model that generates gets the prompt alone: a merge across the border
would be a token that it never sees there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from firstsight.data.samples import Sample
from firstsight.errors import DataError, ModelError

# texts are tokenised one by one, beside a model that wants the cores: the tokenizers' own threads only take them away
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# B samples, L tokens of the longest, I images, M patches of all images, C values of a patch


@dataclass(frozen=True)
class Picture:
    """One image as the model's image processor makes it."""

    pixel_values: Tensor
    """float32 [patches, C]."""
    grid_thw: Tensor
    """int64 [3]: frames, rows and columns of patches."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as model inputs."""

    input_ids: Tensor
    """int64 [L], prompt then answer; the prompt alone where there is no answer."""
    mm_token_type_ids: Tensor
    """int64 [L]: 0 text, 1 image, 2 video."""
    prompt_length: int
    pixel_values: Tensor | None
    """float32 [M, C]."""
    image_grid_thw: Tensor | None
    """int64 [I, 3]: frames, rows and columns of patches."""

    @property
    def target_ids(self) -> Tensor:
        """int64 [P]: the answer's tokens, end of turn included."""
        return self.input_ids[self.prompt_length :]

    @property
    def positions(self) -> int:
        """P, the number of answer positions."""
        return len(self.input_ids) - self.prompt_length


class Prompter:
    """Turns samples into inputs of one model.

    Args:
        processor: a transformers processor with tokenizer, image processor and chat template.
        max_length: longest sequence in tokens, images and answer included; a longer sample is refused, never cut.
        system_prompt: put before the messages of samples that have no system message; None: the template's own default.
    """

    def __init__(self, processor: Any, *, max_length: int, system_prompt: str | None = None) -> None:
        if not getattr(processor, "chat_template", None):
            raise ModelError("the processor has no chat template; add chat_template.jinja to the model's directory")
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.system_prompt = system_prompt
        self._special = sorted(
            (t for t in self.tokenizer.all_special_tokens if t.startswith("<") and t.endswith(">")), key=len
        )
        self.end_of_turn_ids = self._find_end_of_turn()
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.end_of_turn_ids[-1] if pad is None else pad
        """Fills the shorter rows of a batch."""

    def prompt_text(self, sample: Sample) -> str:
        """The rendered prompt, up to where the answer begins."""
        messages = self._messages(sample)
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer, end of turn included."""
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids + self.end_of_turn_ids

    def prompt_tokens(self, sample: Sample) -> tuple[int, int]:
        """Tokens of the prompt and how many of them are image tokens, without decoding an image."""
        ids = self.tokenizer(self.prompt_text(sample), add_special_tokens=False)["input_ids"]
        images = self.processor.image_processor
        patches = sum(images.get_number_of_image_patches(height, width, {}) for width, height in sample.image_sizes())
        image_tokens = int(patches) // images.merge_size**2
        return len(ids) - len(sample.images) + image_tokens, image_tokens

    def picture(self, image: Image.Image) -> Picture:
        """An RGB image as model inputs. Threads may call this at the same time, unlike everything with a tokenizer in it."""
        made = self.processor.image_processor(images=[image], return_tensors="pt")
        return Picture(made["pixel_values"], made["image_grid_thw"][0])

    def encode(
        self, sample: Sample, answer_ids: Sequence[int] | None = None, *, pictures: Sequence[Picture] | None = None
    ) -> Encoded:
        """Model inputs of a sample.

        Args:
            sample: one of the data.
            answer_ids: tokens that follow the prompt, end of turn included; `[]`: the prompt alone; None: the sample's
                own answer.
            pictures: of the sample's images in order; None: they are opened and made here.

        Raises:
            DataError: an image that cannot be read, special tokens in the text, or more than `max_length` tokens.
        """
        self._refuse_special_tokens(sample)
        if pictures is None:
            pictures = [self.picture(image) for image in sample.open_images()]
        if answer_ids is None:
            answer_ids = self.answer_ids(sample.answer) if sample.answer is not None else []
        prompt_ids = self._prompt_ids(self.prompt_text(sample), pictures)
        length = len(prompt_ids) + len(answer_ids)
        if length > self.max_length:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {length} tokens, more than data.max_length = {self.max_length}; "
                "raise it, or lower max_pixels"
            )
        return self._encoded(prompt_ids, answer_ids, pictures)

    def blank(self) -> Encoded:
        """A blank image without a question: what `collate` adds to a batch that must have an image."""
        side = 2 * self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        pictures = [self.picture(Image.new("RGB", (side, side)))]
        return self._encoded(self._prompt_ids(self.processor.image_token, pictures), [], pictures)

    def _prompt_ids(self, text: str, pictures: Sequence[Picture]) -> list[int]:
        """Token ids of a rendered prompt, the place of each image as long as its features."""
        merged = self.processor.image_processor.merge_size**2
        begin, *rest = text.split(self.processor.image_token)
        if len(rest) != len(pictures):
            raise ModelError(
                f"the chat template renders {len(rest)} of a prompt's {len(pictures)} images; expected a place for each"
            )
        for picture, after in zip(pictures, rest, strict=True):
            begin += self.processor.image_token * (int(picture.grid_thw.prod()) // merged) + after
        ids: list[int] = self.tokenizer(begin)["input_ids"]
        return ids

    def _encoded(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], pictures: Sequence[Picture]) -> Encoded:
        ids = torch.tensor([*prompt_ids, *answer_ids], dtype=torch.int64)
        pixels = [picture.pixel_values for picture in pictures]
        types = (ids == self.processor.image_token_id).long()
        types[len(prompt_ids) :] = 0
        return Encoded(
            input_ids=ids,
            mm_token_type_ids=types,
            prompt_length=len(prompt_ids),
            pixel_values=(torch.cat(pixels) if len(pixels) > 1 else pixels[0]) if pixels else None,
            image_grid_thw=torch.stack([picture.grid_thw for picture in pictures]) if pictures else None,
        )

    def _messages(self, sample: Sample) -> list[dict[str, Any]]:
        messages = list(sample.prompt)
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        return messages

    def _find_end_of_turn(self) -> list[int]:
        """The tokens that the template puts after an answer, up to the first special one; else the end-of-sequence token."""
        question = {"role": "user", "content": [{"type": "text", "text": "q"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
        render = self.processor.apply_chat_template
        prompt = render([question], tokenize=False, add_generation_prompt=True)
        full = render([question, answer], tokenize=False)
        if not full.startswith(prompt + "a"):
            raise ModelError(
                "the chat template renders an answer elsewhere than after its generation prompt; such templates are not supported"
            )
        tail: list[int] = self.tokenizer(full[len(prompt) + 1 :], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for index, token in enumerate(tail):
            if token in special:
                return tail[: index + 1]
        return [self.tokenizer.eos_token_id]

    def _refuse_special_tokens(self, sample: Sample) -> None:
        """A control token in a user's text would be read as structure: shifted rows, or an image that is not there."""
        texts = [part["text"] for message in sample.prompt for part in message["content"] if part["type"] == "text"]
        for text in [*texts, sample.answer or ""]:
            if "<" not in text:
                continue
            for token in self._special:
                if token in text:
                    raise DataError(
                        f"{sample.place}: sample {sample.id!r} has the control token {token} in its text; remove it"
                    )


def collate(batch: Sequence[Encoded], pad_id: int, blank: Encoded | None = None) -> dict[str, Tensor]:
    """Pad samples on the right to one batch of model inputs.

    Args:
        batch: B samples.
        pad_id: of the tokenizer.
        blank: of `Prompter.blank`: becomes a row more where no sample has an image.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: int64 [B, L]; pixel_values float32 [M, C] and image_grid_thw
        int64 [I, 3] over all images in order, where there are any.
    """
    if blank is not None and all(sample.pixel_values is None for sample in batch):
        batch = [*batch, blank]
    length = max(len(sample.input_ids) for sample in batch)
    input_ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(batch), length), dtype=torch.int64)
    types = torch.zeros((len(batch), length), dtype=torch.int64)
    for row, sample in enumerate(batch):
        n = len(sample.input_ids)
        input_ids[row, :n] = sample.input_ids
        attention_mask[row, :n] = 1
        types[row, :n] = sample.mm_token_type_ids
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "mm_token_type_ids": types}
    pixels = [sample.pixel_values for sample in batch if sample.pixel_values is not None]
    grids = [sample.image_grid_thw for sample in batch if sample.image_grid_thw is not None]
    if pixels:
        inputs["pixel_values"] = torch.cat(pixels)
        inputs["image_grid_thw"] = torch.cat(grids)
    return inputs


def answer_index(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Rows and columns (int64 [N] each) of the answer positions of a right-padded batch, sample by sample."""
    rows = [torch.full((s.positions,), row, dtype=torch.int64) for row, s in enumerate(batch)]
    columns = [torch.arange(s.prompt_length - 1, s.prompt_length - 1 + s.positions) for s in batch]
    return torch.cat(rows), torch.cat(columns)
