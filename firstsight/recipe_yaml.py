"""How a recipe is read: its YAML, the class of its sections, `--set section.key=value`, the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from firstsight.errors import RecipeError


class Section(BaseModel):
    """A section of a recipe: keyword-only, immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_silently_another_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what Python would take for another value: true for 1, no text for the recipe's own directory."""
        field = cls.model_fields[str(info.field_name)]
        kinds = _kinds(field.annotation)
        if bool not in kinds and kinds & {int, float} and _holds_bool(value):
            raise ValueError(f"must be a number, not true or false{YES_AND_NO}")
        names_a_place = Path in kinds or any(isinstance(each, Place) for each in field.metadata)
        if names_a_place and isinstance(value, str) and not value.strip():
            raise ValueError(NO_PLACE)
        return value


@dataclass(frozen=True)
class Unit:
    """What a key's number counts or measures, for docs/recipe.md: `Annotated[int, Unit("tokens")]`; `none` where it has no unit."""

    name: str


@dataclass(frozen=True)
class Place:
    """Marks a text that names a file, a directory, a bucket or a model: `Annotated[str, Place()]`. It must not be empty."""


YES_AND_NO = " (YAML reads yes, no, on and off as these)"
NO_PLACE = "must name a place, as text; '.' is the recipe's own directory"


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field's annotation is made of."""
    return {annotation}.union(*map(_kinds, get_args(annotation))) if get_args(annotation) else {annotation}


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


class RecipeLoader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does and dates as text; refuses a key that is given twice, and a value that holds itself."""

    def construct_document(self, node: Any) -> Any:
        self.deep_construct = True  # children at once, so that one that holds itself is noticed
        return super().construct_document(node)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias stands inside of what it names", node.start_mark
            )
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"
_READ_HERE = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
# PyYAML's own patterns read 0100 as 64, 1:30 as 90 and 2026-11-26 as a date; here all are text, and a key that takes a number
# reads the first as 100
RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _READ_HERE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$
        |[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text. ValueError: one line that says what is wrong with it."""
    try:
        return yaml.load(text, Loader=RecipeLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:  # such as !!timestamp 2026-02-30
        raise ValueError(f"a value does not fit its tag ({error})") from None


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a recipe's content; RecipeError."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2:
        raise RecipeError(f"--set {override}: expected section.key=value, such as loss.alpha=0.5")
    try:
        value = read_yaml(text)
    except ValueError:
        raise RecipeError(f"--set {override}: {text!r} is not a YAML value") from None
    section = content
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override}: {'.'.join(parts[:depth])!r} is not a section")
    section[parts[-1]] = value


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known keys: {', '.join(sorted(known))}"


def yaml_flow(value: Any) -> str:
    """A value in one line of YAML, to be pasted into a recipe: what YAML would read as something else is quoted."""
    for style in (None, '"'):  # quoted so that a line end in a text is written as \n
        text = yaml.safe_dump(
            value, allow_unicode=True, width=10**6, default_flow_style=True, default_style=style, sort_keys=False
        )
        line: str = text.split("\n...")[0].strip()
        if len(line.splitlines()) < 2:
            break
    return line
