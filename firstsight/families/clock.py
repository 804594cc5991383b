"""Chat templates that read the clock: for them it is always one day, so that a prompt does not depend on when it is made.

    processor.apply_chat_template(messages, chat_template=template_of_one_day(processor), ...)

transformers gives templates a function `strftime_now`, and takes no other in its place: a macro of that name, in front of the
template, hides it.
"""

from __future__ import annotations

import json
from datetime import date
from functools import lru_cache
from string import ascii_letters
from typing import Any

PROMPT_DATE = date(2024, 7, 26)
"""The date that the templates of Llama 3.1 and 3.2 take themselves where there is no clock."""


def template_of_one_day(processor: Any) -> str | None:
    """The chat template of a processor or tokenizer, with `PROMPT_DATE` as the clock; None: it reads no clock."""
    template = processor.chat_template
    if isinstance(template, dict):  # several by name; the others are for tools
        template = template.get("default", "")
    return _macro() + template if "strftime_now" in template else None


@lru_cache
def _macro() -> str:
    """`strftime_now` in Jinja: every directive of strftime is replaced by what it is on that day."""
    percent = "\ue000"
    signs = [f"%{flag}{letter}" for flag in ("-", "") for letter in ascii_letters]
    values = [["%%", percent], *([sign, PROMPT_DATE.strftime(sign)] for sign in signs), [percent, "%"]]
    # the line end belongs to the last tag: the template's own first line stays as it is
    return (
        "{%- macro strftime_now(format) -%}{%- set made = namespace(text=format) -%}"
        f"{{%- for sign, value in {json.dumps(values)} -%}}"
        "{%- set made.text = made.text | replace(sign, value) -%}{%- endfor -%}{{- made.text -}}{%- endmacro %}\n"
    )
