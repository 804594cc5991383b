"""Ask a student a question about images: the answer, how long it took, and the text while it is generated.

student = LoadedStudent(Path("runs/reference/best"), StudentSection())
print(student.ask("what am I holding?", [Path("a.jpg")]).text)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from firstsight.console import time_text
from firstsight.data.samples import Sample
from firstsight.errors import ModelError
from firstsight.generation import TokenWatch, confidence, generate_answers
from firstsight.pair import load_prompter
from firstsight.recipe import StudentSection
from phase2_student.evaluation.loading import device_name, load_for_answers
from phase2_student.runs.preprocessing import read_preprocessing


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The student's answer."""

    text: str
    tokens: int
    """Length of the answer, end of turn included."""
    seconds: float
    """Time from opening the images to the end of the answer."""
    first_seconds: float
    """Time to the first token."""
    confidence: float | None
    """Geometric mean of the tokens' probabilities; None if a logit was not finite."""

    def timing(self) -> str:
        """Time and speed in words."""
        after = self.seconds - self.first_seconds
        speed = f", then {(self.tokens - 1) / after:.1f} tokens/s" if self.tokens > 1 else ""
        sure = "a logit was not finite" if self.confidence is None else f"confidence {self.confidence:.2f}"
        return f"{self.tokens} tokens in {self.seconds:.2f} s: {self.first_seconds:.2f} s to the first{speed}; {sure}"


class LoadedStudent:
    """A student in memory that answers questions.

    Args:
        directory: directory of a student, or of its export.
        section: how to load it; `max_pixels` None: the value of its run, if that is recorded.
        system_prompt: the system prompt; None: the one of its run, else the chat template's default.

    Raises:
        ModelError: the directory holds no model.
    """

    def __init__(self, directory: Path, section: StudentSection, *, system_prompt: str | None = None) -> None:
        if not (directory / "config.json").is_file():
            raise ModelError(f"--model: {directory} has no config.json; pass a student's directory, such as RUN/best")
        if not any(directory.glob("*.safetensors")):
            raise ModelError(f"--model: {directory} has no .safetensors; weights are read from safetensors only")
        begin = time.perf_counter()
        own = read_preprocessing(directory)
        if own is not None:
            if section.max_pixels is None:
                section = section.model_copy(update={"max_pixels": own.max_pixels})
            system_prompt = own.system_prompt if system_prompt is None else system_prompt
        self.prompter = load_prompter(directory, section, system_prompt=system_prompt)
        self.model, dtype = load_for_answers(directory, section)
        self.description = f"{dtype} on {device_name()}, loaded in {time_text(time.perf_counter() - begin)}"
        if system_prompt is not None:
            self.description += f"; system prompt {json.dumps(system_prompt, ensure_ascii=False)}"
        if section.max_pixels is not None:
            self.description += f"; max_pixels {section.max_pixels:,}"

    def ask(
        self,
        question: str,
        images: Sequence[Path],
        *,
        max_new_tokens: int = 128,
        emit: Callable[[str], None] | None = None,
    ) -> Answer:
        """The greedy answer.

        Args:
            question: plain text.
            images: shown before the question, in order.
            max_new_tokens: maximum length of the answer, end of turn included.
            emit: called with each piece of text as it is generated.

        Raises:
            DataError: an image cannot be read, or the question contains a control token.
        """
        begin = time.perf_counter()
        encoded = self.prompter.encode(_sample(question, images), [])
        streamer = _TimedStreamer(self.prompter.tokenizer, emit)
        watch = TokenWatch()
        (ids,) = generate_answers(
            self.model, self.prompter, [encoded], max_new_tokens=max_new_tokens, watch=watch, streamer=streamer
        )
        return Answer(
            text=self.prompter.answer_text(ids),
            tokens=len(ids),
            seconds=time.perf_counter() - begin,
            first_seconds=streamer.first - begin,
            confidence=confidence(watch.log_probabilities(0, len(ids))),
        )


class _TimedStreamer(TextStreamer):
    """Records when the first token came, and passes the text on."""

    first = 0.0
    """`time.perf_counter()` at the first token."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Receive the prompt, then one token at a time."""
        if self._prompt_seen and not self.first:
            self.first = time.perf_counter()
        self._prompt_seen = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receive text that later tokens cannot change."""
        del stream_end  # the interface of transformers
        if self._emit is not None and text:
            self._emit(text)


def _sample(question: str, images: Sequence[Path]) -> Sample:
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    return Sample(
        id="question",
        messages=({"role": "user", "content": parts},),
        images=tuple(images),
        times=None,
        category=None,
        environment=None,
        place="ask",
    )
