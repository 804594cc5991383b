"""Turns samples into inputs of one model.

An answer is tokenised separately from the prompt before it, because a model that generates gets only its prompt: a merge across
the border would be a token that it never sees there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from firstsight.data.sample import PixelLimits, Sample
from firstsight.data.source import Turns
from firstsight.errors import DataError, RecipeError
from firstsight.families.base import Family, Pictures
from firstsight.prompting.encoded import Encoded, collate_images
from firstsight.prompting.kept import UnfitText
from firstsight.prompting.template import ChatTemplate, Conversation, UnfitAnswer, UnfitImages
from firstsight.vocabulary import spelling
from storage.wording import counted

# texts are tokenised one by one, while the model needs the cores: the tokenizers' own threads would only take them away
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_OR_SMALLER = ", or lower max_pixels"


class Prompter:
    """Turns samples into inputs of one model.

    Args:
        processor: as `Family.load_processor` gives it: with tokenizer, image processor and chat template.
        family: of the model.
        max_length: longest sequence in tokens, images and answers included; a longer sample is refused, never cut.
        system_prompt: put before the messages of samples that have no system message; None: the template's own default.
        max_positions: `max_position_embeddings` of the model; None: no limit beside `max_length`.
        turns: `all`: every assistant message is an answer; `last`: only one that closes the conversation.

    Raises:
        ModelError: no chat template, or one that does not render an answer after its generation prompt.
        RecipeError: a control token in the system prompt, or a template that has no place for it.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        *,
        max_length: int,
        system_prompt: str | None = None,
        max_positions: int | None = None,
        turns: Turns = "last",
    ) -> None:
        self.processor = processor
        self.family = family
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_length = max_length
        self.max_positions = max_positions
        self.system_prompt = system_prompt
        self.turns = turns
        self.template = ChatTemplate(processor, family)
        self._control_tokens = self._find_control_tokens()
        if system_prompt is not None and (token := self._control_token([system_prompt])):
            raise RecipeError(f"data.system_prompt: has the control token {token} in its text; remove it")
        if system_prompt is not None and (fault := self.template.system_fault(system_prompt)):
            raise RecipeError(
                f"data.system_prompt: the chat template of {family.name} {fault}; remove the key and put the text into the questions, "
                "or give the model a template with a place for it"
            )
        self._image_token_id = family.image_token_id(processor) if family.has_vision else -1
        self.answer_prefix = self.template.answer_prefix
        self.end_of_turn_ids = self.template.end_of_turn_ids
        self._spelled = {
            True: self._spelled_before(self.template.answer_prefix),
            False: self._spelled_before(self.template.earlier_prefix),
        }
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.end_of_turn_ids[-1] if pad is None else pad
        """Fills the shorter rows of a batch."""

    def prompt_text(self, sample: Sample) -> str:
        """The prompt of the closing answer: the rendered messages before it.

        Raises:
            DataError: the template refuses the sample's messages, or leaves a text out.
        """
        with self._rendering(sample):
            return self.template.prompt(self._messages(sample.prompt))

    def turn_count(self, sample: Sample) -> int:
        """How many answers a sample has, including one that the teacher is to give."""
        return 1 if self.turns == "last" else len(sample.answers) + (sample.answer is None)

    def turn_ids(self, sample: Sample) -> list[list[int]]:
        """Token ids of each of the sample's own answers, as the chat template renders it, end of turn included.

        Raises:
            DataError: the template refuses the sample's messages, leaves a text out, or changes an answer.
        """
        return [self._answer_ids(text) for text in self._conversation(sample).answers]

    def answer_ids(self, answer: str, *, closing: bool = True) -> list[int]:
        """Token ids of an answer as the chat template renders it, end of turn included.

        Args:
            answer: its text.
            closing: no other message follows.
        """
        return self._answer_ids(self.template.answer_text(answer, closing=closing))

    def spelled_prefix(self, *, closing: bool) -> bytes:
        """What the tokens of an answer spell before it: the template's prefix, or a tokenizer's own space."""
        return self._spelled[closing]

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of a generated answer, without the end of turn and without what the template puts before it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.removeprefix(self.answer_prefix)

    def prompt_tokens(self, sample: Sample) -> tuple[int, int]:
        """Tokens outside the answers, and how many of them are image tokens, without decoding an image.

        Raises:
            DataError: a control token in the text, images where the model sees none, or as `turn_ids`.
        """
        total, image_tokens, _ = self.count_tokens(sample)
        return total, image_tokens

    def sample_tokens(self, sample: Sample) -> int:
        """Tokens of the whole sample, without decoding an image and without an answer that the teacher is to give."""
        total, _, answers = self.count_tokens(sample)
        return total + sum(answers)

    def count_tokens(self, sample: Sample) -> tuple[int, int, list[int]]:
        """Tokens outside the answers, how many of them are image tokens, and tokens of each answer; raises as `prompt_tokens`."""
        self.check_text(sample)
        self._refuse_images(sample)
        sizes = sample.image_sizes()
        with _named(sample, sizes):
            texts = self._image_texts(sizes, sample.image_limits)
        contexts, answers = self._conversation(sample)
        total = image_tokens = 0
        with self._rendering(sample):
            for number, expanded in enumerate(self._with_images(contexts, texts)):
                short = expanded
                if sample.images:
                    # a run of image tokens counts one token each: one of them is tokenised, the rest are added
                    token = self.family.image_token(self.processor)
                    short = re.sub(f"(?:{re.escape(token)})+", token, expanded)
                    image_tokens += expanded.count(token)
                    total += expanded.count(token) - short.count(token)
                total += len(self._context_ids(number, short))
        return total, image_tokens, [len(self._answer_ids(text)) for text in answers]

    def pictures(self, images: Sequence[Image.Image], limits: Sequence[PixelLimits | None] = ()) -> Pictures:
        """All images of a sample, RGB, as model inputs; `limits` are `Sample.image_limits`.

        Threads may call this at the same time, unlike everything that uses a tokenizer.

        Raises:
            ValueError: the processor refuses an image; `encode` names its sample.
        """
        if not any(limits):
            return self.family.image_inputs(self.processor, images)
        made = [
            self.family.image_inputs(self._limited(limit), [image]) for image, limit in zip(images, limits, strict=True)
        ]
        return Pictures(
            collate_images([each.inputs for each in made]), tuple(text for each in made for text in each.texts)
        )

    def opened_pictures(self, sample: Sample) -> Pictures:
        """The images of a sample, opened and made model inputs; DataError where one cannot be read, or is refused."""
        images = sample.open_images()
        with _named(sample, [image.size for image in images]):
            return self.pictures(images, sample.image_limits)

    def encode(
        self, sample: Sample, answers: Sequence[Sequence[int]] | None = None, *, pictures: Pictures | None = None
    ) -> Encoded:
        """Model inputs of a sample.

        Args:
            sample: of the data.
            answers: tokens of every answer, end of turn included; `[]`: the prompt of the closing answer alone; None: the
                sample's own answers.
            pictures: the sample's images as inputs; None: they are opened and processed here.

        Raises:
            DataError: an image that cannot be read, special tokens in the text, more than `max_length` tokens, or as `turn_ids`.
        """
        self.check_text(sample)
        self._refuse_images(sample)
        if pictures is None and sample.images:
            pictures = self.opened_pictures(sample)
        if answers is not None and not answers:
            contexts = [self.prompt_text(sample)]
        else:
            contexts, texts = self._conversation(sample)
            if answers is None:
                answers = [self._answer_ids(text) for text in texts]
        with self._rendering(sample):
            encoded = self._encode(contexts, answers, pictures)
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
                f"{sample.place}: sample {sample.id!r} has {length:,} tokens, more than data.max_length = {self.max_length}; "
                f"raise it{_OR_SMALLER if sample.images else ' or shorten it'}"
            )
        if self.max_positions is not None and length > self.max_positions:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {length:,} tokens, more than the {self.max_positions:,} positions of "
                f"{self.family.name} (max_position_embeddings); shorten it{_OR_SMALLER if sample.images else ''}"
            )

    def blank(self) -> Encoded | None:
        """A blank image without a question, which `collate` adds to a batch that must have an image; None for text models."""
        if not self.family.has_vision:
            return None
        pictures = self.pictures([Image.new("RGB", (56, 56))])
        return self._encode([self.family.placeholder(self.processor)], [], pictures)

    def _image_texts(self, sizes: Sequence[tuple[int, int]], limits: Sequence[PixelLimits | None]) -> Sequence[str]:
        """The text of each image in a prompt."""
        if not sizes:
            return ()
        if not any(limits):
            return self.family.image_texts(self.processor, sizes)
        pairs = zip(sizes, limits, strict=True)
        return [text for size, limit in pairs for text in self.family.image_texts(self._limited(limit), [size])]

    def _limited(self, limits: PixelLimits | None) -> Any:
        return self.processor if limits is None else self.family.limited(self.processor, limits)

    def _conversation(self, sample: Sample) -> Conversation:
        """Rendered contexts and answers of a sample; DataError."""
        if self.turns == "last":
            answers = [] if sample.answer is None else [self.template.answer_text(sample.answer)]
            return Conversation([self.prompt_text(sample)], answers)
        with self._rendering(sample):
            return self.template.conversation(self._messages(sample.messages))

    def _messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages for the template: with the system prompt, and image parts without their images."""
        made = [
            {
                "role": message["role"],
                "content": [{"type": "image"} if part["type"] == "image" else part for part in message["content"]],
            }
            for message in messages
        ]
        if self.system_prompt is not None and made[0]["role"] != "system":
            made.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        return made

    @contextmanager
    def _rendering(self, sample: Sample) -> Iterator[None]:
        """Turn what the template refuses, or renders unusably, into a DataError that names the sample."""
        try:
            yield
        except TemplateError as error:
            raise DataError(
                f"{sample.place}: sample {sample.id!r}: the model's chat template refuses its messages ({error})"
            ) from None
        except UnfitAnswer as error:
            several = "; data.turns: last ignores the answers before the last" if sample.earlier_answers else ""
            raise DataError(f"{sample.place}: sample {sample.id!r}: {error}; change the row{several}") from None
        except UnfitText as error:
            raise DataError(
                f"{sample.place}: sample {sample.id!r}: the chat template of {self.family.name} {error}; move it into a message "
                "that the template renders, or give the model a template with a place for it"
            ) from None
        except UnfitImages as error:
            raise DataError(f"{sample.place}: sample {sample.id!r}: {error}; change the row") from None

    def _answer_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + self.end_of_turn_ids

    def _context_ids(self, number: int, text: str) -> list[int]:
        """Ids of a context; after an answer it is tokenised following the end of turn, as in the whole conversation."""
        if number == 0:
            return self.family.tokenize_prompt(self.processor, text)
        end = self.end_of_turn_ids
        ids: list[int] = self.tokenizer(self.template.end_of_turn + text, add_special_tokens=False)["input_ids"]
        if ids[: len(end)] != end:
            raise UnfitAnswer("the tokenizer joins the end of an answer with what follows")
        return ids[len(end) :]

    def _spelled_before(self, prefix: str) -> bytes:
        ids: list[int] = self.tokenizer(prefix + "a", add_special_tokens=False)["input_ids"]
        return spelling(self.tokenizer, ids)[:-1]

    def _encode(self, contexts: Sequence[str], answers: Sequence[Sequence[int]], pictures: Pictures | None) -> Encoded:
        texts = () if pictures is None else pictures.texts
        ids: list[int] = []
        columns: list[Tensor] = []
        is_image: list[Tensor] = []
        for number, text in enumerate(self._with_images(contexts, texts)):
            context = torch.tensor(self._context_ids(number, text), dtype=torch.int64)
            answer = answers[number] if number < len(answers) else ()
            ids += [*context.tolist(), *answer]
            is_image += [(context == self._image_token_id).long(), torch.zeros(len(answer), dtype=torch.int64)]
            columns.append(torch.arange(len(ids) - 1 - len(answer), len(ids) - 1))
        name = self.family.token_types
        return Encoded(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            token_types={} if name is None else {name: torch.cat(is_image)},
            images={} if pictures is None else pictures.inputs,
            answer_columns=torch.cat(columns),
            turns=tuple(map(len, answers)),
        )

    def _with_images(self, contexts: Sequence[str], texts: Sequence[str]) -> list[str]:
        """Rendered contexts with the text of each image in its place."""
        if not self.family.has_vision:
            return list(contexts)
        place = self.family.placeholder(self.processor)
        count = sum(text.count(place) for text in contexts)
        if count != len(texts):
            raise UnfitImages(
                f"the chat template renders {count} of its {counted(len(texts), 'image')}, expected one place for each"
            )
        rest = iter(texts)
        made = []
        for text in contexts:
            begin, *pieces = text.split(place)
            made.append(begin + "".join(next(rest) + piece for piece in pieces))
        return made

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
        """Raise DataError for an answer that cannot be one, and for a control token in a text, which would be read as structure or as
        an image.
        """
        if self.turns == "all":
            sample.check_answers()
        texts = [part["text"] for message in sample.messages for part in message["content"] if part["type"] == "text"]
        if token := self._control_token(texts):
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has the control token {token} in its text; remove it"
            )

    def _refuse_images(self, sample: Sample) -> None:
        if sample.images and not self.family.has_vision:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has {counted(len(sample.images), 'image')}, but {self.family.name} sees none; "
                "use a vision-language model, or rows without images"
            )


@contextmanager
def _named(sample: Sample, sizes: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Turn what a processor refuses in a sample's images, such as an aspect ratio, into a DataError that names the sample."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        shown = ", ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(
            f"{sample.place}: sample {sample.id!r}: the model's image processor refuses its images of {shown} pixels "
            f"({' '.join(str(error).split())}); change the images or their limits"
        ) from None
