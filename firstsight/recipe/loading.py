"""Reading a recipe: the file, `--set` overrides, and one line for anything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from firstsight.data.entries import GivenRows, Rows
from firstsight.errors import RecipeError
from firstsight.recipe.whole import Recipe
from firstsight.recipe_yaml import YES_AND_NO, Section, apply_override, nearest, read_yaml
from firstsight.secrets import secret_places


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, train: Rows | None = None, validation: Rows | None = None
) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides, check it.

    Args:
        path: the file.
        overrides: as `--set` takes them.
        train: rows in place of what `data.train` names: a list of dictionaries, or a `datasets.Dataset`.
        validation: likewise.

    Raises:
        RecipeError: names the file and the key, what was expected and what was found.
        DataError: rows of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"recipe {path} not found; give the path of a YAML file, or write one with firstsight init")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also text that is not UTF-8
        raise RecipeError(f"{path}: not YAML: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected sections such as `teacher:`, got {type(content).__name__}")
    for override in overrides:
        apply_override(content, override)
    for name, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            _give(content, name, rows, overrides)
    return load_recipe_content(content, directory=path.resolve().parent, name=str(path))


def _give(content: dict[str, Any], name: str, rows: Rows, overrides: Sequence[str]) -> None:
    """Put rows in the place of a key of `data`."""
    key = f"data.{name}"
    if any(override.partition("=")[0].strip() == key for override in overrides):
        raise RecipeError(f"{key}: is overridden, and rows are given for it as well; give one of them")
    section = content["data"] = {} if content.get("data") is None else content["data"]
    if isinstance(section, dict):  # anything else is refused with the rest of the recipe
        section[name] = GivenRows.of(rows, name)


def load_recipe_content(content: dict[str, Any], *, directory: Path, name: str) -> Recipe:
    """Check a recipe that is not in a file.

    Args:
        content: sections by name.
        directory: relative paths are relative to it.
        name: for messages.

    Raises:
        RecipeError: names the key, what was expected and what was found.
    """
    if "directory" in content:  # a field that is set here, not a key
        raise RecipeError(f"{name}: directory: no such key{nearest('directory', _keys(Recipe))}")
    if secret := next(secret_places(content), None):
        raise RecipeError(
            f"{name}: {secret}: looks like a secret, but a recipe is written into runs, reports and published folders; remove it, and "
            "set it in the environment of the program that needs it (HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...)"
        )
    try:
        return Recipe.model_validate({**content, "directory": directory})
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_error(error)}") from None


def check_training(training: dict[str, Any]) -> None:
    """Check the section `training` against `transformers.TrainingArguments` (imports them: seconds).

    Raises:
        RecipeError: an unknown name, with the nearest known one; true or false for a number.
    """
    import dataclasses

    from transformers import TrainingArguments

    known = {field.name: str(field.type) for field in dataclasses.fields(TrainingArguments) if field.init}
    for name, value in training.items():
        if name not in known:
            raise RecipeError(f"training.{name}: no such key in TrainingArguments{nearest(name, list(known))}")
        if isinstance(value, bool) and re.fullmatch(r"<class '(int|float)'>|(int|float) \| None", known[name]):
            raise RecipeError(f"training.{name}: must be a number, not true or false{YES_AND_NO}, got {value}")


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        owner: Any = Recipe
        for part in place[:-1]:
            owner = _section(owner.model_fields[part].annotation)
        return f"{dotted}: no such key{nearest(place[-1], _keys(owner))}"
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _keys(section: type[Section]) -> list[str]:
    return [name for name in section.model_fields if name != "directory"]


def _section(annotation: Any) -> Any:
    """The section class of a field that holds a section, or a section or None."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
