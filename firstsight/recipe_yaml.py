"""How a recipe is read: its YAML, the class of its sections, `--set section.key=value`, the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from firstsight.errors import RecipeError


class Section(BaseModel):
    """A section of a recipe: keyword-only, immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Unit:
    """What a key's number counts or measures, for docs/recipe.md: `Annotated[int, Unit("tokens")]`; `none` where it has no unit."""

    name: str


class RecipeLoader(yaml.SafeLoader):
    """Reads YAML 1.2 floats (1e-5), and refuses a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a recipe's content; RecipeError."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2:
        raise RecipeError(f"--set {override}: expected section.key=value, such as loss.alpha=0.5")
    try:
        value = yaml.load(text, Loader=RecipeLoader)
    except yaml.YAMLError:
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
