"""Nothing is ignored in silence: keys that have no effect are refused by name, with what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from firstsight.errors import DataError
from firstsight.recipe_yaml import yaml_flow

_VIDEO = "video files are not read: extract frames and list their images in 'frames' (docs/data.md)"
_LIMITS = (
    "limits of an image are min_pixels and max_pixels of an image part (Qwen-VL), or teacher.max_pixels and student.max_pixels of "
    "the recipe"
)

_PREFERENCE = "training uses one answer per question, not preferences"

REMEDIES = {
    "video": _VIDEO,
    "videos": _VIDEO,
    "fps": _VIDEO,
    "nframes": _VIDEO,
    "audio": "audio is not supported",
    "audios": "audio is not supported",
    "min_pixels": _LIMITS,
    "max_pixels": _LIMITS,
    "resized_height": _LIMITS,
    "resized_width": _LIMITS,
    "detail": _LIMITS,
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "kto_tag"), _PREFERENCE),
    "tools": "tools are not supported",
    "tool_calls": "tools are not supported",
    "weight": "every answer has the weight 1",
    "loss": "every answer has the weight 1",
    "train": "every answer has the weight 1",
}
"""What to do about keys that other tools know and that have no effect here."""


def known_only(given: Mapping[str, Any], known: Collection[str], place: str, owner: str) -> dict[str, Any]:
    """The entries of a mapping that are not null (tables have null for a missing value).

    Raises:
        DataError: an unknown key that is not empty, with the nearest known one or the remedy; a column can also be ignored by name.
    """
    content = {
        key: value for key, value in given.items() if value is not None and (key in known or not is_empty(value))
    }
    for key in content:
        if key in known:
            continue
        if remedy := REMEDIES.get(key):
            raise DataError(f"{place}: {owner} has the key {key!r}: {remedy}{_ignore(owner, key)}")
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        raise DataError(f"{place}: {owner} has the unknown key {key!r}; {hint}{_ignore(owner, key)}")
    return content


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, a text without words, an empty list or mapping. Numbers and false are values."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def without_nan(value: Any) -> Any:
    """A value of a row with null in the place of each NaN: what tables write for a missing number."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _ignore(owner: str, key: str) -> str:
    return f"; to ignore it, add it to data.ignore_columns: {yaml_flow([str(key)])}" if owner == "the row" else ""


_UNFIT = re.compile("[\0\ud800-\udfff]")


def clean_text(text: str, place: str, owner: str) -> str:
    """A text that files, tokenizers and pages can hold; DataError: a NUL or half a surrogate pair in it."""
    if found := _UNFIT.search(text):
        what = "a NUL character" if found[0] == "\0" else f"half a surrogate pair (\\u{ord(found[0]):04x})"
        raise DataError(f"{place}: {owner} has {what} at character {found.start()}; remove it")
    return text
