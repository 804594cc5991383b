"""Contents of messages: a text, or parts as TRL, Qwen, OpenAI and axolotl write them; `<image>` marks become parts."""

from __future__ import annotations

import re
from typing import Any

from firstsight.data.images import from_base64
from firstsight.data.strict import clean_text, known_only
from firstsight.errors import DataError

_PICTURES = ("image", "path", "url", "base64")  # keys of an image part that hold its image
_LIMITS = ("min_pixels", "max_pixels")  # of an image part, as in Qwen-VL: its size after scaling
MARK = re.compile(r"<(image|video|audio)>")
"""Marks in a text: the place of an image, and of media that are not supported."""


def content_parts(content: Any, place: str, *, marks: bool) -> list[dict[str, Any]]:
    """Parts `{"type": "text", "text"}` and `{"type": "image"}`; the latter with `image` if it brings its own, with
    `index` if it names one of the row's, and with its limits.

    Args:
        content: of a message.
        place: of the row.
        marks: `<image>` in a text is an image's place.

    Raises:
        DataError: what is wrong with it.
    """
    if isinstance(content, str):
        parts = [{"type": "text", "text": clean_text(content, place, "a message")}]
    elif isinstance(content, list):
        parts = [_part(part, place) for part in content]
    else:
        raise DataError(f"{place}: a message's content must be a string or a list of parts, got {content!r:.80}")
    return _at_marks(parts, place) if marks else parts


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        part = known_only(part, ("type", "text"), place, "a text part")
        if isinstance(part.get("text"), str):
            return {"type": "text", "text": clean_text(part["text"], place, "a message")}
    if kind == "image_url":
        part = known_only(part, ("type", "image_url"), place, "an image_url part")
        address = part.get("image_url")
        if isinstance(address, dict):
            address = known_only(address, ("url",), place, "an image_url").get("url")
        if isinstance(address, str):
            return {"type": "image", "image": address}
    if kind in ("image", "video_frame"):
        part = known_only(part, ("type", "index", *_PICTURES, *_LIMITS), place, "an image part")
        limits = _limits(part, place)
        given = [key for key in _PICTURES if key in part]
        if len(given) > 1:
            raise DataError(f"{place}: an image part has {given[0]!r} and {given[1]!r}; keep one of them")
        if "index" in part:
            return {"type": "image", "index": _index(part, given, place), **limits}
        if not given:
            return {"type": "image", **limits}
        picture = part[given[0]]
        if given[0] == "base64":
            if not isinstance(picture, str):
                raise DataError(f"{place}: an image part's 'base64' must be a string, got {picture!r:.80}")
            picture = from_base64(picture, place, 1)
        return {"type": "image", "image": picture, **limits}
    if kind in ("video", "audio", "input_audio", "video_url"):
        raise DataError(
            f"{place}: a part has type {kind!r}, but only text and images are supported; list frames as images"
        )
    raise DataError(
        f"{place}: a part must be {{'type': 'image'}} or {{'type': 'text', 'text': ...}}, got {part!r:.120}"
    )


def _index(part: dict[str, Any], given: list[str], place: str) -> int:
    value = part["index"]
    if given:
        raise DataError(f"{place}: an image part has 'index' and {given[0]!r}; keep one of them")
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or value < 0:
        raise DataError(
            f"{place}: 'index' of an image part must be the place of an image in the row's images, from 0, got {value!r:.80}"
        )
    return int(value)


def _limits(part: dict[str, Any], place: str) -> dict[str, int]:
    found = {}
    for name in _LIMITS:
        if name not in part:
            continue
        value = part[name]
        whole = type(value) is int or (isinstance(value, float) and value.is_integer())
        if not whole or value < 1:
            raise DataError(f"{place}: {name!r} of an image part must be a whole number of pixels, got {value!r:.80}")
        found[name] = int(value)
    if found.get("min_pixels", 0) > found.get("max_pixels", found.get("min_pixels", 0)):
        raise DataError(
            f"{place}: an image part has min_pixels = {found['min_pixels']:,}, more than its max_pixels = {found['max_pixels']:,}"
        )
    return found


def _at_marks(parts: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] != "text" or "<" not in part["text"]:
            made.append(part)
            continue
        text, end = part["text"], 0
        for mark in MARK.finditer(text):
            if mark[1] != "image":
                raise DataError(
                    f"{place}: a text has the mark {mark[0]}, which is not supported; list frames as images, "
                    "or set data.format: trl if it is meant as text"
                )
            if before := text[end : mark.start()]:
                made.append({"type": "text", "text": before})
            made.append({"type": "image", "mark": True})
            end = mark.end()
        if end == 0 or text[end:]:
            made.append({"type": "text", "text": text[end:]})
    return made
