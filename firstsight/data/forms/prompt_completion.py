"""TRL's `prompt` and `completion`: texts (one question, one answer), or messages on both sides."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages
from firstsight.errors import DataError


def _messages(row: dict[str, Any], place: str) -> Messages:
    return _side(row, "prompt", "user", place) + (
        _side(row, "completion", "assistant", place) if "completion" in row else []
    )


def _side(row: dict[str, Any], column: str, role: str, place: str) -> Messages:
    value = row.get(column)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {column!r} must be a string or a list of messages, got {value!r:.80}")
    if column == "completion" and any(isinstance(m, dict) and m.get("role") != "assistant" for m in value):
        raise DataError(f"{place}: 'completion' must hold only assistant messages")
    return value


PROMPT_COMPLETION = Form(
    name="prompt_completion",
    signs=("prompt", "completion"),
    columns=frozenset({"prompt", "completion"}),
    messages=_messages,
)
