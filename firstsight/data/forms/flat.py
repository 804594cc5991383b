"""One question in text columns: `question`, `answer`, images. EgoThink's files have this form."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages, question_and_answer, text_of


def _messages(row: dict[str, Any], place: str) -> Messages:
    return question_and_answer(
        text_of(row, "question", place),
        text_of(row, "answer", place) if "answer" in row else None,
        system=text_of(row, "system", place) if "system" in row else None,
    )


FLAT = Form(
    name="flat",
    signs=("question",),
    columns=frozenset({"question", "answer", "system", "image_path", "source_dataset"}),
    messages=_messages,
    pictures=("image_path",),
)
