"""A row of any form as `messages` of parts, with its images in their places."""

from __future__ import annotations

from typing import Any

from firstsight.data.forms.base import COMMON, Form, listed_images
from firstsight.data.forms.conversations import CONVERSATIONS, tagged
from firstsight.data.forms.flat import FLAT
from firstsight.data.forms.instruction import INSTRUCTION, QUERY
from firstsight.data.forms.messages import MESSAGES, TRL
from firstsight.data.forms.parts import content_parts
from firstsight.data.forms.prompt_completion import PROMPT_COMPLETION
from firstsight.data.source import DataSource
from firstsight.data.strict import is_empty, known_only, without_nan
from firstsight.errors import DataError
from firstsight.recipe_yaml import yaml_flow
from storage.wording import counted

FORMS = (MESSAGES, CONVERSATIONS, PROMPT_COMPLETION, INSTRUCTION, QUERY, FLAT, TRL)

ROLES = ("system", "user", "assistant")

_BESIDE = {"id", "category", "environment", "options"}  # names and notes: not part of what is trained on


def to_row(value: Any, place: str, source: DataSource) -> dict[str, Any]:
    """`messages` of parts, `images` in their order, and the columns beside them.

    Args:
        value: a row as its file holds it.
        place: of the row, for messages.
        source: form and columns, if stated.

    Raises:
        DataError: an unknown or contradictory column, mark or part, by name and with what to do.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(value).__name__}")
    value = _renamed(without_nan(value), place, source)
    form = _form(value, place, source)
    row = known_only(value, COMMON | form.columns, place, "the row")
    row = {name: each for name, each in row.items() if name in form.signs[:1] or not _absent(name, each)}
    if source.mapped_only:
        row = {name: each for name, each in row.items() if name in source.columns or not is_empty(each)}
        if other := set(row) - set(source.columns) - _BESIDE:
            raise DataError(
                f"{place}: the column {min(other)!r} is not in the columns of the dataset_info.json; map it there, or to ignore it add "
                f"it to data.ignore_columns: {yaml_flow([min(other)])}"
            )
    if source.mapped_only and isinstance(row.get("images"), str | dict):
        row["images"] = [row["images"]]  # LLaMA-Factory also takes a single one
    if source.tags is not None:
        row["conversations"] = tagged(row.get("conversations"), source.tags, place)
    listed = listed_images(row, form, place)
    messages = [_message(message, place, form.marks) for message in form.messages(row, place)]
    return {
        "messages": messages,
        "images": _placed(messages, listed, place, timed=bool(row.get("times"))),
        "environment": row.get("environment", row.get("source_dataset")),
        **{name: row.get(name) for name in ("id", "times", "category", "options", "answers")},
    }


def _absent(name: str, value: Any) -> bool:
    """Whether a column states nothing: an empty text, as an empty cell of a CSV file, and a system prompt without words.

    A system turn among the messages that has no words is another thing: it replaces the default of a chat template.
    """
    return value == "" or (name == "system" and is_empty(value))


def _renamed(row: dict[str, Any], place: str, source: DataSource) -> dict[str, Any]:
    if not source.columns and not source.ignore_columns:
        return row
    row = {name: value for name, value in row.items() if name not in source.ignore_columns}
    taken = set(source.columns.values())
    made = {name: value for name, value in row.items() if name not in taken}
    for ours, theirs in source.columns.items():
        if theirs not in row:
            continue  # a column that a row lacks is like one that is null
        if ours in made:
            raise DataError(
                f"{place}: data.columns takes {ours!r} from {theirs!r}, but the row also has a column {ours!r}; to ignore it add it to "
                f"data.ignore_columns: {yaml_flow([ours])}"
            )
        made[ours] = row[theirs]
    return made


def _form(row: dict[str, Any], place: str, source: DataSource) -> Form:
    if source.format is not None:
        return next(form for form in FORMS if form.name == source.format)
    signs_of = [(form, [sign for sign in form.signs if row.get(sign) is not None]) for form in FORMS]
    fitting = [form for form, signs in signs_of if not all(is_empty(row[sign]) for sign in signs)]
    fitting = fitting or [form for form, signs in signs_of if signs]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        signs = [next(sign for sign in form.signs if row.get(sign) is not None) for form in fitting]
        raise DataError(
            f"{place}: the row has {' and '.join(map(repr, signs))}, which belong to different forms; set data.format to "
            f"{' or '.join(form.name for form in fitting)} and add the other to data.ignore_columns"
        )
    if "messages" in row:
        return MESSAGES
    known = ", ".join(sign for form in FORMS for sign in form.signs[:1])
    example = yaml_flow({"question": next(iter(row), "query")})
    raise DataError(
        f"{place}: 'messages' must be a list of messages, got None; the row has {', '.join(map(repr, list(row)[:12])) or 'no columns'}: "
        f"expected one of {known}; name other columns in data.columns, such as {example}"
    )


def _message(message: Any, place: str, marks: bool) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise DataError(f"{place}: a message's role must be one of {', '.join(ROLES)}, got {role!r:.80}")
    message = known_only(message, ("role", "content"), place, "a message")
    return {"role": role, "content": content_parts(message.get("content"), place, marks=marks)}


def _placed(messages: list[dict[str, Any]], listed: list[Any], place: str, *, timed: bool) -> list[Any]:
    """The images in the order of their places; `messages` keep image parts without images."""
    places = [part for message in messages for part in message["content"] if part["type"] == "image"]
    marks = sum("mark" in part for part in places)
    if 0 < marks < len(places):
        raise DataError(
            f"{place}: the messages have {marks} <image> marks and {len(places) - marks} image parts; keep one kind"
        )
    if any("index" in part for part in places):
        return _named(places, listed, place, timed=timed)
    own = sum("image" in part for part in places)
    if not places and listed:
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is not None:
            places = [{"type": "image"} for _ in listed]
            first["content"] = [*places, *first["content"]]
    if len(places) - own != len(listed):
        if own:
            raise DataError(
                f"{place}: {own} image parts bring their own image, {len(places) - own} do not, and the row lists {len(listed)}; "
                "give each image once"
            )
        literal = "; if the mark is meant as text, set data.format: trl" if marks else ""
        raise DataError(
            f"{place}: the messages have places for {counted(len(places), 'image')}, but the row lists {len(listed)}; "
            f"make the numbers equal{literal}"
        )
    rest = iter(listed)
    pictures = []
    for part in places:
        pictures.append(part.pop("image") if "image" in part else next(rest))
        part.pop("mark", None)
    return pictures


def _named(places: list[dict[str, Any]], listed: list[Any], place: str, *, timed: bool) -> list[Any]:
    """The images that parts name by their `index` in the row's images, from 0."""
    if not all("index" in part for part in places):
        raise DataError(f"{place}: some image parts have an 'index' and others do not; give each one, or none")
    indices = [part.pop("index") for part in places]
    if (most := max(indices)) >= len(listed):
        raise DataError(
            f"{place}: an image part has index = {most}, but the row lists {counted(len(listed), 'image')}, counted from 0; correct it"
        )
    if unused := set(range(len(listed))) - set(indices):
        raise DataError(
            f"{place}: no image part has index = {min(unused)}, so that image is not used; remove it from the row"
        )
    if timed and indices != list(range(len(listed))):
        raise DataError(
            f"{place}: 'times' are of frames in their order, but an 'index' of the image parts changes it; list the frames in order"
        )
    return [listed[index] for index in indices]
