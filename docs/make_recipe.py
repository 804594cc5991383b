"""Writes docs/recipe.md from the fields of the recipe and their docstrings: `make docs`. A test fails when the page has drifted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types as bounds
import yaml
from pydantic.fields import FieldInfo

from firstsight.data.entries import HubSplit, ListedDataset
from firstsight.recipe import LoraSection, Recipe
from firstsight.recipe_yaml import Section, Unit
from phase2_student.training.arguments import DEFAULTS
from phase2_student.training.known_arguments import ACTS, REFUSED

PAGE = Path(__file__).with_name("recipe.md")
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
# what stands inside of a section, with its title
INNER: dict[str, list[tuple[str, type[Section]]]] = {
    "student": [("`student.lora`", LoraSection)],
    "data": [("A dataset of the hub", HubSplit), ("An entry of a `dataset_info.json`", ListedDataset)],
}
_ENTRIES = {HubSplit, ListedDataset}
_HEAD = "| key | value | unit | default | what it does |\n|---|---|---|---|---|"
_INTRODUCTION = """\
# The recipe

Generated from the fields of `firstsight/recipe/` by `make docs`.

One YAML file describes both phases. `firstsight init FILE` writes one with comments for a data file, and `recipes/` holds those that
come with the project. `--set section.key=value` overrides a key for one command. Relative paths are relative to the recipe, and `~` is
expanded. An unknown key is an error that names the nearest known one. YAML's yes, no, on and off are true and false, never numbers;
dates are text; aliases and merges (`<<`) work within sections. Keys that are left out have the defaults below. Secrets are
refused: give them by the environment (`HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`).

```yaml
teacher:
  model: Qwen/Qwen2-VL-7B-Instruct
student:
  model: Qwen/Qwen2-VL-2B-Instruct
data:
  root: data
  train: train.jsonl
  validation: 5%
cache:
  path: cache.zarr
loss:
  temperature: 2.0
training:
  output_dir: runs/first
  learning_rate: 1.0e-5
```
"""
_TRAINING = """\
## `training`

The names are those of `transformers.TrainingArguments`, with their types and defaults; transformers' own page describes each. A few
have another default here:

{defaults}

`output_dir` is relative to the recipe like every path. These keys have an effect, and their values are checked before anything is loaded:

{acting}

These keys would have no effect here, or would do harm. Any value other than the accepted one is refused, for the reason given:

| key | accepted | why it is refused |
|---|---|---|
{refused}
"""


def rows(section: type[Section]) -> Iterator[tuple[str, FieldInfo, str, str, str]]:
    """Name, field, value, unit and default of every key of a section."""
    for name, field in section.model_fields.items():
        unit = next((each.name for each in field.metadata if isinstance(each, Unit)), "")
        yield name, field, value_text(field.annotation, field.metadata), unit, default_text(field, unit)


def value_text(kind: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """What a key takes, in words."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return value_text(inner, [*metadata, *more])
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if _ENTRIES & set(arguments):
        return "a file, a dataset, or a list of these" + (", a share, or `none`" if NoneType in arguments else "")
    if NoneType in arguments:
        (inner,) = (each for each in arguments if each is not NoneType)
        return f"{value_text(inner, metadata)}; or null"
    if get_origin(kind) is tuple:
        return f"list of: {value_text(arguments[0])}"
    if get_origin(kind) is dict:
        return "names and their names"
    if isinstance(kind, type) and issubclass(kind, Section):
        return "a section (below)"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}[kind]
    return words + _bounds(metadata)


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    texts = []
    for each in metadata:
        for part in [each, *getattr(each, "metadata", ())]:
            match part:
                case bounds.Ge():
                    texts.append(f"{part.ge:,} or more")
                case bounds.Gt():
                    texts.append(f"above {part.gt:,}")
                case bounds.Le():
                    texts.append(f"{part.le:,} or less")
                case bounds.Lt():
                    texts.append(f"below {part.lt:,}")
    return f", {', '.join(texts)}" if texts else ""


def default_text(field: FieldInfo, unit: str) -> str:
    """A default as YAML has it."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if unit == "bytes" and value % 2**20 == 0:
        return f"`{value // 2**20} MiB`"
    return f"`{_yaml(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def section_table(section: type[Section]) -> str:
    """The keys of a section."""
    lines = [_HEAD]
    for name, field, value, unit, default in rows(section):
        lines.append(f"| `{name}` | {value} | {unit} | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _training() -> str:
    defaults = [f"- `{name}: {_yaml(value)}`" for name, value in DEFAULTS.items()]
    defaults += [
        "- `output_dir: runs/student`",
        "- `report_to`: `tensorboard` where it is installed, else `none`",
        "- `disable_tqdm`: as `--progress` says",
    ]
    refused = [
        f"| `{name}` | {', '.join(f'`{_yaml(each)}`' for each in allowed)} | {_cell(reason)} |"
        for name, (allowed, reason) in sorted(REFUSED.items())
    ]
    acting = ", ".join(f"`{name}`" for name in sorted(ACTS))
    return _TRAINING.format(defaults="\n".join(defaults), acting=acting, refused="\n".join(refused))


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f'"{text[1:-1]}"' if text.startswith("'") else text


def page() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION]
    for name, section in SECTIONS.items():
        parts.append(f"## `{name}`\n\n{' '.join((section.__doc__ or '').split())}\n\n{section_table(section)}\n")
        for title, inner in INNER.get(name, []):
            parts.append(f"### {title}\n\n{' '.join((inner.__doc__ or '').split())}\n\n{section_table(inner)}\n")
    return "\n".join([*parts, _training()])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
