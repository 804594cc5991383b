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

from firstsight.errors import DataError, ModelError
from firstsight.samples import Sample

# texts are tokenised one by one, beside a model that wants the cores: the tokenizers' own threads only take them away
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# B samples, L tokens of the longest, I images, M patches of all images, C values of a patch


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

    def encode(self, sample: Sample, answer_ids: Sequence[int] | None = None) -> Encoded:
        """Model inputs of a sample.

        Args:
            sample: its images are opened here.
            answer_ids: tokens that follow the prompt, end of turn included; `[]`: the prompt alone; None: the sample's
                own answer.

        Raises:
            DataError: an image that cannot be read, special tokens in the text, or more than `max_length` tokens.
        """
        self._refuse_special_tokens(sample)
        images = sample.open_images()
        inputs = self.processor(text=[self.prompt_text(sample)], images=images or None, return_tensors="pt")
        prompt_ids = inputs["input_ids"][0]
        if answer_ids is None:
            answer_ids = self.answer_ids(sample.answer) if sample.answer is not None else []
        answer = torch.tensor(answer_ids, dtype=torch.int64)
        length = len(prompt_ids) + len(answer)
        if length > self.max_length:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {length} tokens, more than data.max_length = {self.max_length}; "
                "raise it, or lower max_pixels"
            )
        return _encoded(inputs, answer)

    def blank(self) -> Encoded:
        """A blank image without a question: what `collate` adds to a batch that must have an image."""
        side = 2 * self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        images = [Image.new("RGB", (side, side))]
        inputs = self.processor(text=[self.processor.image_token], images=images, return_tensors="pt")
        return _encoded(inputs, torch.empty(0, dtype=torch.int64))

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


def _encoded(inputs: Any, answer: Tensor) -> Encoded:
    prompt_ids, types = inputs["input_ids"][0], inputs.get("mm_token_type_ids")
    types = torch.zeros(len(prompt_ids), dtype=torch.int64) if types is None else torch.as_tensor(types)[0]
    return Encoded(
        input_ids=torch.cat([prompt_ids, answer]),
        mm_token_type_ids=torch.cat([types.long(), torch.zeros(len(answer), dtype=torch.int64)]),
        prompt_length=len(prompt_ids),
        pixel_values=inputs.get("pixel_values"),
        image_grid_thw=inputs.get("image_grid_thw"),
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
