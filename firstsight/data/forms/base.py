"""What the forms share: columns besides the messages, and how images are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from firstsight.data.strict import is_empty
from firstsight.errors import DataError

COMMON = frozenset({"id", "image", "images", "frames", "times", "category", "environment", "options", "answers"})
"""Columns that every form takes."""

Messages = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of rows."""

    name: str
    """As `data.format` gives it."""
    signs: tuple[str, ...]
    """A row that has any of these columns is of this form."""
    columns: frozenset[str]
    """Columns that it takes besides `COMMON`; others are refused."""
    messages: Callable[[dict[str, Any], str], Messages]
    """(row without nulls, place) -> messages with `role` and `content`. DataError: what is wrong."""
    marks: bool = True
    """Whether `<image>` in a text is the place of an image."""
    pictures: tuple[str, ...] = ()
    """More names of columns that hold images."""


def listed_images(row: dict[str, Any], form: Form, place: str) -> list[Any]:
    """The images that a row lists outside its messages.

    Raises:
        DataError: several such columns, or one of the wrong type.
    """
    names = [name for name in ("images", "frames", "image", *form.pictures) if name in row]
    given = [name for name in names if not is_empty(row[name])] or names[:1]
    if len(given) > 1:
        raise DataError(f"{place}: {given[0]!r} and {given[1]!r} exclude each other; keep one of them")
    if not given:
        return []
    value = row[given[0]]
    if isinstance(value, list):
        return value
    if given[0] in ("images", "frames"):
        raise DataError(
            f"{place}: {given[0]!r} must be a list of paths, got {type(value).__name__}; for a single image use a column 'image'"
        )
    return [value]


def text_of(row: dict[str, Any], column: str, place: str) -> str:
    """A column that must be a string."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{place}: {column!r} must be a string, got {value!r:.80}")
    return value


def turns_of(history: Any, place: str) -> Messages:
    """Earlier turns as pairs of question and answer."""
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise DataError(f"{place}: 'history' must list pairs of question and answer, got {history!r:.80}")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in history for role, text in zip(roles, pair, strict=True)]


def question_and_answer(
    question: str, answer: str | None, *, system: str | None = None, before: Messages | None = None
) -> Messages:
    """The messages of one question, with those before it."""
    messages: Messages = [{"role": "system", "content": system}] if system is not None else []
    messages += before or []
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages
