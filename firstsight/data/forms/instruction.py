"""`instruction`, `input`, `output` (Alpaca, LLaMA-Factory) and `query`, `response` (ms-swift), both with `system` and `history`."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import Form, Messages, question_and_answer, text_of, turns_of


def _instruction(row: dict[str, Any], place: str) -> Messages:
    question = text_of(row, "instruction", place)
    if "input" in row:
        question = "\n".join(filter(None, (question, text_of(row, "input", place))))
    return _turns(row, question, "output", place)


def _query(row: dict[str, Any], place: str) -> Messages:
    return _turns(row, text_of(row, "query", place), "response", place)


def _turns(row: dict[str, Any], question: str, answer: str, place: str) -> Messages:
    return question_and_answer(
        question,
        text_of(row, answer, place) if answer in row else None,
        system=text_of(row, "system", place) if "system" in row else None,
        before=turns_of(row.get("history", []), place),
    )


INSTRUCTION = Form(
    name="instruction",
    signs=("instruction",),
    columns=frozenset({"instruction", "input", "output", "system", "history"}),
    messages=_instruction,
)
QUERY = Form(
    name="query", signs=("query",), columns=frozenset({"query", "response", "system", "history"}), messages=_query
)
