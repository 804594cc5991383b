"""Checks the one row that all forms become, and makes it a sample."""

from __future__ import annotations

import math
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from firstsight.data.forms import to_row
from firstsight.data.images import image_source
from firstsight.data.sample import Sample, message_text
from firstsight.data.source import DataSource
from firstsight.data.strict import clean_text
from firstsight.errors import DataError, PictureError


def parse_row(value: Any, place: str, source: DataSource) -> Sample:
    """The sample of a row as its file holds it.

    Args:
        value: the row, of any form.
        place: what messages call it, and the id of a row without one.
        source: how to read its columns, and where its images are.

    Raises:
        PictureError: what is wrong with one of its images, and what to do.
        DataError: what else is wrong.
    """
    row = to_row(value, place, source)
    try:
        images = tuple(
            image_source(image, source, place, number) for number, image in enumerate(row["images"], start=1)
        )
    except DataError as error:
        raise PictureError(str(error)) from None
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        if any(part["type"] == "image" for part in messages[-1]["content"]):
            raise DataError(f"{place}: an answer cannot hold an image")
        answer = message_text(messages[-1])
        messages[-1] = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        if not answer.strip():
            raise DataError(f"{place}: the answer is empty; remove the assistant message if there is no ground truth")
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not any(message["role"] == "user" for message in before):
        raise DataError(f"{place}: 'messages' has no user message before the answer")
    return Sample(
        id=_id(row["id"], place),
        messages=tuple(messages),
        images=images,
        times=_times(row["times"], len(images), place),
        category=_name(row["category"], "category", place),
        environment=_name(row["environment"], "environment", place),
        place=place,
        options=_options(row["options"], place),
        truths=_truths(row["answers"], place),
    )


def _id(value: Any, place: str) -> str:
    if value is None:
        return place
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{place}: key 'id' must be a string, got {value!r:.80}")
    return clean_text(str(value), place, "the id")


def _name(value: Any, key: str, place: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise DataError(f"{place}: {key!r} must be a name, got {value!r:.80}")
    return clean_text(str(value), place, f"the {key}")


def _times(times: Any, count: int, place: str) -> tuple[float, ...] | None:
    if times is None or (times == [] and not count):
        return None
    if (
        not isinstance(times, list)
        or len(times) != count
        or not all(isinstance(t, int | float) and not isinstance(t, bool) and math.isfinite(t) for t in times)
    ):
        raise DataError(f"{place}: 'times' must list one number (seconds) per frame, {count} here, got {times!r:.80}")
    return tuple(float(t) for t in times)


def _options(options: Any, place: str) -> tuple[str, ...]:
    if isinstance(options, dict):
        options = _in_order(options, place)
    if options is None or options == []:
        return ()
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise DataError(f"{place}: 'options' must list the texts of a multiple choice, A first, got {options!r:.80}")
    if not 2 <= len(options) <= 26:
        raise DataError(f"{place}: 'options' must list 2 to 26 texts, got {len(options)}")
    return tuple(clean_text(option, place, "an option") for option in options)


def _in_order(options: dict[str, Any], place: str) -> list[Any]:
    """The texts of `{"A": "a mug", "B": "a bottle"}` or `{"1": "a mug", "2": "a bottle"}`, so that each keeps its letter.

    Tables have a null for each key that a row lacks. DataError: keys that leave open which letter a text has.
    """
    given = {key for key, text in options.items() if text is not None}
    for keys in (ascii_uppercase, ascii_lowercase, [str(n) for n in range(26)], [str(n) for n in range(1, 27)]):
        if given == set(keys[: len(given)]):
            return [options[key] for key in keys[: len(given)]]
    raise DataError(
        f"{place}: the keys of 'options' must be A, B, C, ... (or a, b, c, ...) or whole numbers from 0 or 1, without gaps (null is "
        f"a gap) and at most 26, got {', '.join(map(repr, sorted(given)))[:80]}; correct them, or list the texts, A first"
    )


def _truths(answers: Any, place: str) -> tuple[str, ...]:
    if answers is None:
        return ()
    if isinstance(answers, list):  # [{"answer": "yes", "answer_confidence": "maybe", "answer_id": 1}]
        answers = [each.get("answer") if isinstance(each, dict) else each for each in answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        raise DataError(f"{place}: 'answers' must list the texts that several people answered, got {answers!r:.80}")
    return tuple(clean_text(each, place, "one of the answers") for each in answers)
