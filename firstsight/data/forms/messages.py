"""`messages` with roles and contents: TRL, Qwen and OpenAI parts, LLaMA-Factory and ms-swift with `<image>` marks."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages
from firstsight.errors import DataError


def _messages(row: dict[str, Any], place: str) -> Messages:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: 'messages' must be a list of messages, got {messages!r:.80}")
    if "system" not in row:
        return messages
    if isinstance(messages[0], dict) and messages[0].get("role") == "system":
        raise DataError(f"{place}: 'system' and a system message exclude each other; keep one of them")
    return [{"role": "system", "content": row["system"]}, *messages]


MESSAGES = Form(name="messages", signs=("messages",), columns=frozenset({"messages", "system"}), messages=_messages)
TRL = Form(
    name="trl", signs=(), columns=frozenset({"messages", "system"}), messages=_messages, marks=False
)  # only by name: `<image>` in a text is text
