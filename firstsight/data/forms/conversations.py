"""`conversations` with `from` and `value` (ShareGPT, LLaVA, LLaMA-Factory), or with `role` and `content`."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages
from firstsight.data.strict import known_only
from firstsight.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _messages(row: dict[str, Any], place: str) -> Messages:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: 'conversations' must be a list of turns, got {turns!r:.80}")
    messages = [_message(turn, place) for turn in turns]
    if "system" in row:
        if messages[0]["role"] == "system":
            raise DataError(f"{place}: 'system' and a system turn exclude each other; keep one of them")
        messages.insert(0, {"role": "system", "content": row["system"]})
    return messages


def _message(turn: Any, place: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: a turn must have 'from' and 'value', got {turn!r:.80}")
    if "from" not in turn:
        return turn  # role and content
    turn = known_only(turn, ("from", "value"), place, "a turn")
    role = _ROLES.get(turn["from"]) if isinstance(turn.get("from"), str) else None
    if role is None:
        raise DataError(f"{place}: a turn's 'from' must be one of {', '.join(_ROLES)}, got {turn.get('from')!r:.80}")
    return {"role": role, "content": turn.get("value")}


CONVERSATIONS = Form(
    name="conversations",
    signs=("conversations",),
    columns=frozenset({"conversations", "system"}),
    messages=_messages,
)
