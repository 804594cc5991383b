"""What `data.train` and `data.validation` can name besides files: hub datasets, and entries of a `dataset_info.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from firstsight.recipe_yaml import Section, nearest


class HubSplit(Section):
    """A split of a dataset of the hub, or of a directory that `datasets.load_dataset` takes."""

    hub: str
    """Its id, such as `HuggingFaceH4/llava-instruct-mix-vsft`; or a directory, relative to `data.root`."""
    subset: str | None = None
    """One of its configurations; null: the only one."""
    split: str | None = None
    """A split, also a slice of one: `train`, `train[:1%]`, `train[100:200]`; null: the only one."""
    revision: str | None = None
    """Branch, tag or commit; null: the newest."""

    def __str__(self) -> str:
        name = Path(self.hub).name if Path(self.hub).is_absolute() else self.hub
        return " ".join(filter(None, (name, self.subset, self.split)))


class ListedDataset(Section):
    """A dataset as LLaMA-Factory's `dataset_info.json` describes it: its file, form, columns and tags."""

    dataset_info: Path
    """The JSON file, relative to `data.root`; the files that it names are relative to its directory."""
    name: str
    """The dataset's name in it."""

    def __str__(self) -> str:
        return f"{self.name} of {self.dataset_info.name}"


Entry = Path | HubSplit | ListedDataset
"""A file or directory, or an entry in place of one."""


def entry(value: Any) -> Entry:
    """An entry as a recipe writes it. ValueError: what is wrong with it."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, str) and value:
        return Path(value)
    kinds = {"hub": HubSplit, "dataset_info": ListedDataset}
    found = [name for name in kinds if isinstance(value, dict) and name in value]
    if len(found) != 1:
        raise ValueError(
            "must be a file, {hub: ID, subset: ..., split: ...}, {dataset_info: FILE, name: ...}, or a list of these"
        )
    kind: type[HubSplit | ListedDataset] = kinds[found[0]]  # type: ignore[assignment]
    for name in value:
        if name not in kind.model_fields:
            raise ValueError(f"has no key {name!r}{nearest(str(name), list(kind.model_fields))}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg'].lower()}") from None
