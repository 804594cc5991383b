"""`conversations` with `from` and `value` (ShareGPT, LLaVA, LLaMA-Factory), or with `role` and `content`; ms-swift's `conversation`."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages
from firstsight.data.source import Tags
from firstsight.data.strict import known_only
from firstsight.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _messages(row: dict[str, Any], place: str) -> Messages:
    if "conversation" in row:
        if "conversations" in row:
            raise DataError(f"{place}: 'conversation' and 'conversations' exclude each other; keep one of them")
        row = {**row, "conversations": _pairs(row["conversation"], place)}
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


def _pairs(pairs: Any, place: str) -> Messages:
    """Turns as ms-swift writes them: `{"human", "assistant"}` each; the last one may have no answer."""
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        raise DataError(f"{place}: 'conversation' must list objects with 'human' and 'assistant', got {pairs!r:.80}")
    messages: Messages = []
    for pair in pairs:
        pair = known_only(pair, ("human", "assistant"), place, "a turn")
        if "human" not in pair or ("assistant" not in pair and len(messages) < 2 * len(pairs) - 2):
            raise DataError(f"{place}: a turn must have 'human' and 'assistant', got {pair!r:.80}")
        messages += [{"role": _ROLES[name], "content": pair[name]} for name in ("human", "assistant") if name in pair]
    return messages


def tagged(turns: Any, tags: Tags, place: str) -> Messages:
    """Turns with given keys and roles as messages with `role` and `content`. DataError."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: the turns must be a list, got {turns!r:.80}")
    messages: Messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{place}: a turn must have {tags.role!r} and {tags.content!r}, got {turn!r:.80}")
        turn = known_only(turn, (tags.role, tags.content), place, "a turn")
        name = turn.get(tags.role)
        role = tags.roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise DataError(f"{place}: a turn's {tags.role!r} must be one of {', '.join(tags.roles)}, got {name!r:.80}")
        messages.append({"role": role, "content": turn.get(tags.content)})
    return messages


CONVERSATIONS = Form(
    name="conversations",
    signs=("conversations", "conversation"),
    columns=frozenset({"conversations", "conversation", "system"}),
    messages=_messages,
)
