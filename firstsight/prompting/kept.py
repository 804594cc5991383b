"""Whether a rendering holds the texts of its messages: a chat template is free to leave out what it has no place for.

    check_kept(messages, rendered)     # UnfitText: a text that is not there

White space and case do not count, nor does the order: templates trim, indent, escape as JSON and move the system text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_SHOWN = 40  # characters of a text in a message


class UnfitText(ValueError):
    """The template leaves a text out; says which."""


def check_kept(messages: Sequence[dict[str, Any]], rendered: str) -> None:
    """Raise UnfitText if a text of the messages is not in their rendering. The thoughts (`<think>`) of an answer may be missing.

    Args:
        messages: each with a list of parts.
        rendered: by the chat template.
    """
    texts = [
        (message["role"], part["text"].strip())
        for message in messages
        for part in message["content"]
        if part["type"] == "text"
    ]
    place = 0
    for _, text in texts:
        found = rendered.find(text, place)
        if found < 0:
            return _check_each(texts, rendered)
        place = found + len(text)
    return None


def _check_each(texts: Sequence[tuple[str, str]], rendered: str) -> None:
    """The same for a rendering that changes texts or their order: each takes a place of its own, the longest first."""
    rest = _bare(rendered)
    # of equal texts, the system's is the one that is likely to be missing
    for role, text in sorted(texts, key=lambda each: (-len(_bare(each[1])), each[0] == "system")):
        form = next((form for form in _forms(role, text) if form in rest), None)
        if form is None:
            shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
            raise UnfitText(f"drops the {role} text {shown!r}")
        if form:
            rest = rest.replace(form, "\0", 1)


def _forms(role: str, text: str) -> list[str]:
    """What a text may be rendered as, bare."""
    forms = [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]
    if role == "assistant" and "</think>" in text:
        forms.append(text.rpartition("</think>")[2])
    return [_bare(form) for form in forms]


def _bare(text: str) -> str:
    """The text without white space and case."""
    return "".join(text.split()).casefold()
