"""From a sample to model inputs: the model's own chat template and processor, and where the answers are.

Both phases go through this code, so the teacher's rows and the student's rows are found the same way. The row of a
token is at the position before it: for an answer of P tokens (end of turn included) after a prompt of `p` tokens the
answer positions are p - 1 ... p + P - 2.

Prompt and answer are tokenised apart, because a model that generates gets the prompt alone: a merge across the border
would be a token that it never sees there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from firstsight.data.samples import Sample
from firstsight.errors import DataError, ModelError, RecipeError
from firstsight.families.base import Family, Pictures
from firstsight.vocabulary import spelling

# texts are tokenised one by one, beside a model that wants the cores: the tokenizers' own threads only take them away
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_OR_SMALLER = ", or lower max_pixels"

# B samples, L tokens of the longest, N answer positions of a batch, P of a sample


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as model inputs."""

    input_ids: Tensor
    """int64 [L], prompt then answer; the prompt alone where there is no answer."""
    token_types: dict[str, Tensor]
    """int64 [L] by the model's input name: 1 for image tokens, 0 for text. Empty for families without such an input."""
    images: dict[str, Tensor]
    """Inputs of the model made from the images, by name; empty without images."""
    answer_columns: Tensor
    """int64 [P]: answer positions, each one before its token."""

    @property
    def target_ids(self) -> Tensor:
        """int64 [P]: the answer's tokens, end of turn included."""
        return self.input_ids[self.answer_columns + 1]

    @property
    def positions(self) -> int:
        """P, the number of answer positions."""
        return len(self.answer_columns)

    def with_answer(self, answer_ids: Sequence[int]) -> Encoded:
        """An encoded prompt followed by an answer; none of its tokens is an image token."""
        length, count = len(self.input_ids), len(answer_ids)
        answer = torch.tensor(answer_ids, dtype=torch.int64)
        return Encoded(
            input_ids=torch.cat([self.input_ids, answer]),
            token_types={
                name: torch.cat([types, torch.zeros_like(answer)]) for name, types in self.token_types.items()
            },
            images=self.images,
            answer_columns=torch.cat([self.answer_columns, torch.arange(length - 1, length - 1 + count)]),
        )


class Prompter:
    """Turns samples into inputs of one model.

    Args:
        processor: as `Family.load_processor` gives it: with tokenizer, image processor and chat template.
        family: of the model.
        max_length: longest sequence in tokens, images and answer included; a longer sample is refused, never cut.
        system_prompt: put before the messages of samples that have no system message; None: the template's own default.
        max_positions: `max_position_embeddings` of the model; None: no limit beside `max_length`.

    Raises:
        ModelError: no chat template, or one that renders an answer elsewhere than after its generation prompt.
        RecipeError: a control token in the system prompt.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        *,
        max_length: int,
        system_prompt: str | None = None,
        max_positions: int | None = None,
    ) -> None:
        if not getattr(processor, "chat_template", None):
            raise ModelError("the processor has no chat template; add chat_template.jinja to the model's directory")
        self.processor = processor
        self.family = family
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_length = max_length
        self.max_positions = max_positions
        self.system_prompt = system_prompt
        self._control_tokens = self._find_control_tokens()
        if system_prompt is not None and (token := self._control_token([system_prompt])):
            raise RecipeError(f"data.system_prompt: has the control token {token} in its text; remove it")
        self._image_token_id = family.image_token_id(processor) if family.has_vision else -1
        self._find_answer_frame()
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.end_of_turn_ids[-1] if pad is None else pad
        """Fills the shorter rows of a batch."""

    def prompt_text(self, sample: Sample) -> str:
        """The rendered prompt, up to where the answer begins.

        Raises:
            DataError: the template does not take the sample's messages.
        """
        messages = list(sample.prompt)
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        try:
            return self._render(messages, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(
                f"{sample.place}: sample {sample.id!r}: the model's chat template refuses its messages ({error})"
            ) from None

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as the chat template renders it, end of turn included."""
        text = self.answer_prefix + (answer.strip() if self._strips_answers else answer)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + self.end_of_turn_ids

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of a generated answer, without end of turn and without what the template puts in front of it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.removeprefix(self.answer_prefix)

    def prompt_tokens(self, sample: Sample) -> tuple[int, int]:
        """Tokens of the prompt and how many of them are image tokens, without decoding an image.

        Raises:
            DataError: a control token in the text, or images where the model sees none.
        """
        self.check_text(sample)
        self._refuse_images(sample)
        sizes = sample.image_sizes()
        with _named(sample, sizes):
            texts = self.family.image_texts(self.processor, sizes) if sample.images else ()
        expanded = self._with_images(self.prompt_text(sample), texts)
        if not sample.images:
            return len(self.family.tokenize_prompt(self.processor, expanded)), 0
        # a run of image tokens counts as many tokens as it is long: one of them is tokenised, the rest are added
        token = self.family.image_token(self.processor)
        short = re.sub(f"(?:{re.escape(token)})+", token, expanded)
        total, kept = expanded.count(token), short.count(token)
        return len(self.family.tokenize_prompt(self.processor, short)) + total - kept, total

    def sample_tokens(self, sample: Sample) -> int:
        """Tokens of the prompt and of the answer where there is one, without decoding an image."""
        answer = 0 if sample.answer is None else len(self.answer_ids(sample.answer))
        return self.prompt_tokens(sample)[0] + answer

    def pictures(self, images: Sequence[Image.Image]) -> Pictures:
        """All images of a sample, RGB, as model inputs.

        Threads may call this at the same time, unlike everything with a tokenizer in it.

        Raises:
            ValueError: the processor refuses an image; `encode` says whose it is.
        """
        return self.family.image_inputs(self.processor, images)

    def encode(
        self, sample: Sample, answer_ids: Sequence[int] | None = None, *, pictures: Pictures | None = None
    ) -> Encoded:
        """Model inputs of a sample.

        Args:
            sample: one of the data.
            answer_ids: tokens that follow the prompt, end of turn included; `[]`: the prompt alone; None: the sample's
                own answer.
            pictures: of the sample's images; None: they are opened and made here.

        Raises:
            DataError: an image that cannot be read, special tokens in the text, or more than `max_length` tokens.
        """
        self.check_text(sample)
        self._refuse_images(sample)
        if pictures is None and sample.images:
            images = sample.open_images()
            with _named(sample, [image.size for image in images]):
                pictures = self.pictures(images)
        if answer_ids is None:
            answer_ids = self.answer_ids(sample.answer) if sample.answer is not None else []
        encoded = self._encode(self.prompt_text(sample), pictures).with_answer(answer_ids)
        self.check_length(sample, len(encoded.input_ids))
        return encoded

    @property
    def longest(self) -> int:
        """Tokens of the longest sample that recipe and model allow."""
        return self.max_length if self.max_positions is None else min(self.max_length, self.max_positions)

    def check_length(self, sample: Sample, length: int) -> None:
        """Raise DataError for a sample of more tokens than the recipe or the model allows."""
        if length > self.max_length:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {length} tokens, more than data.max_length = {self.max_length}; "
                f"raise it{_OR_SMALLER if sample.images else ' or shorten it'}"
            )
        if self.max_positions is not None and length > self.max_positions:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {length} tokens, more than the {self.max_positions} positions of "
                f"{self.family.name} (max_position_embeddings); shorten it{_OR_SMALLER if sample.images else ''}"
            )

    def blank(self) -> Encoded | None:
        """A blank image without a question: what `collate` adds to a batch that must have an image; None for text models."""
        if not self.family.has_vision:
            return None
        pictures = self.pictures([Image.new("RGB", (56, 56))])
        return self._encode(self.family.placeholder(self.processor), pictures)

    def _encode(self, text: str, pictures: Pictures | None) -> Encoded:
        texts = () if pictures is None else pictures.texts
        ids = torch.tensor(
            self.family.tokenize_prompt(self.processor, self._with_images(text, texts)), dtype=torch.int64
        )
        name = self.family.token_types
        return Encoded(
            input_ids=ids,
            token_types={} if name is None else {name: (ids == self._image_token_id).long()},
            images={} if pictures is None else pictures.inputs,
            answer_columns=torch.empty(0, dtype=torch.int64),
        )

    def _with_images(self, text: str, texts: Sequence[str]) -> str:
        """A rendered prompt with the text of each image in its place."""
        if not self.family.has_vision:
            return text
        begin, *rest = text.split(self.family.placeholder(self.processor))
        if len(rest) != len(texts):
            raise ModelError(
                f"the chat template renders {len(rest)} of a prompt's {len(texts)} images; expected a place for each"
            )
        return begin + "".join(picture + after for picture, after in zip(texts, rest, strict=True))

    def _render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        return self.family.render(self.processor, messages, add_generation_prompt=add_generation_prompt)

    def _find_answer_frame(self) -> None:
        """What the template puts around an answer, from two answers that have nothing in common.

        Before it: what follows the generation prompt, such as a space. After it: the end of the turn, up to the first
        control token; else the end-of-sequence token.
        """
        question = {"role": "user", "content": [{"type": "text", "text": "q"}]}

        def rendered(answer: str) -> str:
            return self._render([question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}])

        try:
            prompt, one, other = self._render([question], add_generation_prompt=True), rendered("a"), rendered("b")
            padded = rendered(" a ")
        except TemplateError as error:
            raise ModelError(f"the chat template cannot render a question with an answer ({error})") from None
        before = commonprefix([one, other])  # noqa: RUF071 characters are meant, not parts of a path
        # LLaVA-OneVision renders "assistant \n" where its generation prompt has "assistant\n": a model that answers sees the
        # generation prompt, so that one is trained on
        alike = before.split() == prompt.split()
        if one[len(before) : len(before) + 1] != "a" or not (alike or before.startswith(prompt)):
            raise ModelError(
                "the chat template renders an answer elsewhere than after its generation prompt; such templates are not supported"
            )
        self.answer_prefix = before[len(prompt) :] if before.startswith(prompt) else ""
        """What the template puts between its generation prompt and an answer, such as a space."""
        self._strips_answers = padded == one
        tail: list[int] = self.tokenizer(one[len(before) + 1 :], add_special_tokens=False)["input_ids"]
        control = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        end = next((index for index, token in enumerate(tail) if token in control), None)
        self.end_of_turn_ids: list[int] = [self.tokenizer.eos_token_id] if end is None else tail[: end + 1]
        spelled: list[int] = self.tokenizer(self.answer_prefix + "a", add_special_tokens=False)["input_ids"]
        self.answer_offset = len(spelling(self.tokenizer, spelled)) - 1
        """Bytes that stand before an answer in the spelling of its tokens: the template's, or a tokenizer's own space."""

    def _find_control_tokens(self) -> re.Pattern[str]:
        tokenizer = self.tokenizer
        tokens = set(tokenizer.all_special_tokens)
        # special in tokenizer.json alone
        tokens |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        if self.family.has_vision:
            tokens |= {self.family.placeholder(self.processor), self.family.image_token(self.processor)}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token))

    def _control_token(self, texts: Iterable[str]) -> str | None:
        for text in texts:
            if found := self._control_tokens.search(text):
                return found[0]
        return None

    def check_text(self, sample: Sample) -> None:
        """Raise DataError for a control token in a user's text: it would be read as structure, or as an image that is not there."""
        texts = [part["text"] for message in sample.prompt for part in message["content"] if part["type"] == "text"]
        if token := self._control_token([*texts, sample.answer or ""]):
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has the control token {token} in its text; remove it"
            )

    def _refuse_images(self, sample: Sample) -> None:
        if sample.images and not self.family.has_vision:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {len(sample.images)} images, and {self.family.name} sees none; "
                "use a vision-language model, or rows of text"
            )


@contextmanager
def _named(sample: Sample, sizes: Sequence[tuple[int, int]]) -> Iterator[None]:
    """What a processor refuses about a sample's images, such as an aspect ratio, as a DataError that names the sample."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        shown = ", ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(
            f"{sample.place}: sample {sample.id!r}: the model's image processor refuses its images of {shown} pixels "
            f"({' '.join(str(error).split())}); cut or replace them"
        ) from None


def collate(
    batch: Sequence[Encoded], pad_id: int, blank: Encoded | None = None, *, left: bool = False
) -> dict[str, Tensor]:
    """Pad samples to one batch of model inputs.

    Args:
        batch: B samples.
        pad_id: of the tokenizer.
        blank: of `Prompter.blank`: becomes a row more where no sample has an image.
        left: pad on the left, for generation; else on the right.

    Returns:
        input_ids, attention_mask and the family's token types: int64 [B, L]; the inputs made of images, over all images in
        order, where there are any.
    """
    if blank is not None and not any(sample.images for sample in batch):
        batch = [*batch, blank]
    length = max(len(sample.input_ids) for sample in batch)
    inputs = {"input_ids": torch.full((len(batch), length), pad_id, dtype=torch.int64)}
    for name in ("attention_mask", *batch[0].token_types):
        inputs[name] = torch.zeros((len(batch), length), dtype=torch.int64)
    for row, sample in enumerate(batch):
        count = len(sample.input_ids)
        place = slice(length - count, length) if left else slice(count)
        inputs["input_ids"][row, place] = sample.input_ids
        inputs["attention_mask"][row, place] = 1
        for name, types in sample.token_types.items():
            inputs[name][row, place] = types
    return inputs | collate_images([sample.images for sample in batch])


def collate_images(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image inputs of several samples by name: along the first axis, shorter ones padded with zeros along the others."""
    names = {name: None for part in parts for name in part}
    return {name: _concatenate([part[name] for part in parts if name in part]) for name in names}


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    if all(list(tensor.shape[1:]) == largest for tensor in tensors):
        return torch.cat(list(tensors))
    whole = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), *largest))
    start = 0
    for tensor in tensors:
        whole[(slice(start, start + len(tensor)), *(slice(size) for size in tensor.shape[1:]))] = tensor
        start += len(tensor)
    return whole


def answer_index(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Rows and columns (int64 [N] each) of the answer positions of a right-padded batch, sample by sample."""
    rows = [torch.full((sample.positions,), row, dtype=torch.int64) for row, sample in enumerate(batch)]
    return torch.cat(rows), torch.cat([sample.answer_columns for sample in batch])
