"""What a chat template puts around the answers of a conversation.

    template = ChatTemplate(processor, family)
    contexts, answers = template.conversation(messages)

A template is a program: nothing is assumed about what it renders. Replacing each answer by a mark shows what surrounds it.
The real rendering must be these pieces with the answers in between; otherwise the conversation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2 import TemplateError

from firstsight.data.sample import message_text
from firstsight.errors import ModelError
from firstsight.families.base import Family
from firstsight.prompting.kept import UnfitText, check_kept

Message = dict[str, Any]


class Frame(NamedTuple):
    """What a template renders between a question and its answer."""

    prompt: str
    """What is in the place of the generation prompt; the same except for white space."""
    prefix: str
    """What follows it, and is rendered only with an answer, such as a space: the model must generate it."""


class Conversation(NamedTuple):
    """The rendered pieces of a conversation, in turn: context, answer, context, answer, ..."""

    contexts: list[str]
    """What the model is given before each answer, up to its generation prompt. Those after the first begin after the end of turn.
    There is one more context than answers if the last message is not an answer."""
    answers: list[str]
    """What is rendered between the generation prompt and the end of turn."""


class UnfitAnswer(ValueError):
    """The template does not render an answer unchanged and in its place."""


class UnfitImages(ValueError):
    """The template leaves images out, or places for them."""


class ChatTemplate:
    """The chat template of a model.

    Args:
        processor: with the template.
        family: of the model.

    Raises:
        ModelError: no template, or one that does not render an answer after its generation prompt.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        if not getattr(processor, "chat_template", None):
            raise ModelError("the processor has no chat template; add chat_template.jinja to the model's directory")
        self._processor = processor
        self._family = family
        tokenizer = getattr(processor, "tokenizer", processor)
        question = _text("user", "q")
        try:
            asked, prompt = self.render([question]), self.render([question], add_generation_prompt=True)
            one, other, padded = (self.render([question, _text("assistant", text)]) for text in ("a", "b", " a "))
        except TemplateError as error:
            raise ModelError(f"the chat template cannot render a question with an answer ({error})") from None
        before = commonprefix([one, other])  # noqa: RUF071 characters are meant, not parts of a path
        # LLaVA-OneVision renders "assistant \n" where its generation prompt has "assistant\n": a model that answers sees the
        # generation prompt, so training uses that
        alike = before.split() == prompt.split()
        if one[len(before) : len(before) + 1] != "a" or not (alike or before.startswith(prompt)):
            raise ModelError(
                "the chat template does not render an answer after its generation prompt; such templates are not supported"
            )
        self.answer_prefix = before[len(prompt) :] if before.startswith(prompt) else ""
        """What the template puts between its generation prompt and a closing answer, such as a space."""
        self._strips = padded == one
        self._after = one[len(before) + 1 :]
        tail: list[int] = tokenizer(self._after, add_special_tokens=False)["input_ids"]
        control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        end = next((index for index, token in enumerate(tail) if token in control), None)
        self.end_of_turn_ids: list[int] = [tokenizer.eos_token_id] if end is None else tail[: end + 1]
        self.end_of_turn = "" if end is None else _up_to(self._after, tokenizer.convert_ids_to_tokens(tail[end]))
        """The text of `end_of_turn_ids`; empty if the template marks no end."""
        self._generation = prompt[len(asked) :] if prompt.startswith(asked) else None
        closing = self._frame(before, asked)
        self._closing = closing if closing is not None and closing.prefix == self.answer_prefix else None
        self._earlier = self._probe_earlier(question, asked)

    @property
    def earlier_prefix(self) -> str:
        """The same as `answer_prefix`, for an answer that is not the last message."""
        return "" if self._earlier is None else self._earlier.prefix

    def answer_text(self, answer: str, *, closing: bool = True) -> str:
        """An answer as the template renders it after the generation prompt."""
        return (self.answer_prefix if closing else self.earlier_prefix) + (answer.strip() if self._strips else answer)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; TemplateError if the template refuses it."""
        return self._family.render(self._processor, messages, add_generation_prompt=add_generation_prompt)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The messages with a generation prompt.

        Raises:
            TemplateError: the template refuses them.
            UnfitText: it leaves a text out.
        """
        rendered = self.render(messages, add_generation_prompt=True)
        check_kept(messages, rendered)
        return rendered

    def system_fault(self, text: str) -> str | None:
        """What the template does to a system prompt instead of rendering it, in words; None: it renders it."""
        try:
            # the mark at its end tells a short prompt from what the template says itself
            self.prompt([_text("system", text + "\ue000"), _text("user", "q")])
        except TemplateError as error:
            return f"refuses it ({error})"
        except UnfitText:
            return "drops it"
        return None

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """The pieces of a conversation in which every assistant message is an answer.

        Raises:
            TemplateError: the template refuses the conversation.
            UnfitAnswer: an answer that is not rendered unchanged; says which.
            UnfitText: another text that is not rendered.
        """
        places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        closed = messages[-1]["role"] == "assistant"
        if not places:
            return Conversation([self.prompt(messages)], [])
        if len(places) == 1 and closed and (self._closing is None or self._generation is None):
            # the generation prompt cannot be told from the question: nothing to compare with
            return Conversation([self.prompt(messages[:-1])], [self.answer_text(message_text(messages[-1]))])
        return self._split(messages, places, closed)

    def _split(self, messages: Sequence[Message], places: Sequence[int], closed: bool) -> Conversation:
        count = len(places)
        frames = [self._closing if closed and place == len(messages) - 1 else self._earlier for place in places]
        if self._generation is None or (count > closed and not self.end_of_turn):
            raise UnfitAnswer("the chat template marks no end of the answers before the last")
        heads, contexts = [], []
        around = self._around(messages, places, closed)
        check_kept([message for message in messages if message["role"] != "assistant"], "\0".join(around))
        for number, (text, frame) in enumerate(zip(around, frames, strict=False)):
            end = self.end_of_turn if number else ""
            if frame is None or not text.startswith(end) or not text.endswith(frame.prompt + frame.prefix):
                raise UnfitAnswer(_unfit(number, count))
            heads.append(text.removesuffix(frame.prefix))
            context = heads[-1].removeprefix(end)
            if closed and number == count - 1:  # a model that answers sees the generation prompt
                context = context.removesuffix(frame.prompt) + self._generation
            contexts.append(context)
        heads.append(around[-1])
        if not around[-1].startswith(self.end_of_turn):
            raise UnfitAnswer(_unfit(count - 1, count))
        if not closed:
            contexts.append(around[-1].removeprefix(self.end_of_turn))
        return Conversation(contexts, self._answers(messages, places, closed, frames, heads))

    def _answers(
        self,
        messages: Sequence[Message],
        places: Sequence[int],
        closed: bool,
        frames: Sequence[Frame | None],
        heads: Sequence[str],
    ) -> list[str]:
        """Each answer as rendered: what is between the heads in the real rendering; UnfitAnswer."""
        count = len(places)
        whole = self.render(messages, add_generation_prompt=not closed)
        if not whole.startswith(heads[0]) or not whole.endswith(heads[-1]):
            raise UnfitAnswer(_unfit(0, count))
        answers: list[str] = []
        place = len(heads[0])
        for number, (index, frame) in enumerate(zip(places, frames, strict=True)):
            last = number == count - 1
            end = len(whole) - len(heads[-1]) if last else whole.find(heads[number + 1], place)
            given, text = message_text(messages[index]), whole[place:end]
            prefix = "" if frame is None else frame.prefix
            if end < place or _bare(text) not in (_bare(given), _bare(prefix + given)):
                raise UnfitAnswer(_unfit(number, count))
            answers.append(text)
            place = end + len(heads[number + 1])
        return answers

    def _around(self, messages: Sequence[Message], places: Sequence[int], closed: bool) -> list[str]:
        """What is before, between and after the answers, from a rendering with marks in their places."""
        texts = "".join(message_text(message) for message in messages)
        mark = "\ue000"  # of the private use area
        while mark in texts:
            mark += "\ue001"
        marked = list(messages)
        for number, index in enumerate(places):
            marked[index] = _text("assistant", f"{mark}{number}\ue002")
        rest = self.render(marked, add_generation_prompt=not closed)
        around = []
        for number in range(len(places)):
            before, found, rest = rest.partition(f"{mark}{number}\ue002")
            if not found or mark in before:
                raise UnfitAnswer(_unfit(number, len(places)))
            around.append(before)
        if mark in rest:
            raise UnfitAnswer(_unfit(len(places) - 1, len(places)))
        return [*around, rest]

    def _frame(self, before: str, asked: str) -> Frame | None:
        """What `before`, the rendering up to an answer, has after the question; None: unknown."""
        if self._generation is None or not before.startswith(asked):
            return None
        shown = before[len(asked) :]
        if shown.startswith(self._generation):
            return Frame(self._generation, shown[len(self._generation) :])
        return Frame(shown, "") if shown.split() == self._generation.split() else None

    def _probe_earlier(self, question: Message, asked: str) -> Frame | None:
        """The frame of an answer with another question after it."""
        try:
            two = self.render([question, _text("assistant", "\ue000"), question, _text("assistant", "b")])
        except TemplateError:  # such a conversation is refused when there is one
            return None
        before, mark, _ = two.partition("\ue000")
        return self._frame(before, asked) if mark else None


def _text(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _bare(text: str) -> str:
    """The text without white space, which templates trim and put between parts."""
    return "".join(text.split())


def _up_to(text: str, token: str) -> str:
    return text[: text.index(token) + len(token)]


def _unfit(number: int, count: int) -> str:
    return f"the chat template changes answer {number + 1} of {count} of the row"
