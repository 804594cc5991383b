"""What `data.train` and `data.validation` can name besides files: hub datasets, entries of a `dataset_info.json`, rows from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import PrivateAttr, ValidationError

from firstsight.errors import DataError
from firstsight.recipe_yaml import Place, Section, nearest


class HubSplit(Section):
    """A split of a dataset of the hub, or of a directory that `datasets.load_dataset` takes."""

    hub: Annotated[str, Place()]
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


class GivenRows(Section):
    """Rows that Python gave in place of a file. A recipe that is saved names them, but does not hold them."""

    rows: int
    """How many they were."""
    name: str
    """What messages call them."""
    _held: Any = PrivateAttr(default=None)

    @classmethod
    def of(cls, rows: Rows, name: str) -> Self:
        """Rows as an entry; they are not read here.

        Args:
            rows: a list of dictionaries, or a `datasets.Dataset`.
            name: what messages call them.

        Raises:
            DataError: something else.
        """
        dataset = is_dataset(rows)
        if not dataset and (not isinstance(rows, Sequence) or isinstance(rows, str | bytes)):
            raise DataError(
                f"{name}: expected a list of rows (dictionaries) or a datasets.Dataset, got {type(rows).__name__}; {_remedy(rows)}"
            )
        given = cls(rows=len(rows), name=name)
        given._held = rows if dataset else tuple(rows)
        return given

    @property
    def held(self) -> Any:
        """A tuple of rows, or a `datasets.Dataset`. DataError: the recipe was read from a file, which only names them."""
        if self._held is None:
            raise DataError(
                f"{self.name}: {self.rows:,} rows that Python gave are in no file; give them again, load_recipe(..., {self.name}=rows), "
                f"or name a file in data.{self.name}"
            )
        return self._held

    def __str__(self) -> str:
        return self.name


Rows = Sequence[Mapping[str, Any]] | Any
"""A list of dictionaries, or a `datasets.Dataset`, which has no types."""


def is_dataset(rows: object) -> bool:
    """Whether rows are a `datasets.Dataset`; the package is not imported for it."""
    return any(_of_datasets(kind) and kind.__name__ == "Dataset" for kind in type(rows).__mro__)


def _of_datasets(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "datasets"


def _remedy(rows: object) -> str:
    if isinstance(rows, str | bytes | Path):
        return "name a file in the recipe, or by an override such as data.train=FILE"
    if _of_datasets(type(rows)):
        splits = list(rows) if isinstance(rows, dict) else []
        one = f"one of its splits: {', '.join(splits)}" if splits else "a Dataset, whose rows can be read again"
        return f"give {one}"
    if isinstance(rows, Iterator):
        return "rows are read more than once; give list(...) of it"
    return "for a table use datasets.Dataset.from_pandas; a single row goes into a list"


Entry = Path | HubSplit | ListedDataset | GivenRows
"""A file or directory, or an entry in place of one."""


def entry(value: Any) -> Entry:
    """An entry as a recipe writes it. ValueError: what is wrong with it."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, str) and value:
        return Path(value)
    kinds = {"hub": HubSplit, "dataset_info": ListedDataset, "rows": GivenRows}
    found = [name for name in kinds if isinstance(value, dict) and name in value]
    if len(found) != 1:
        raise ValueError(
            "must be a file, {hub: ID, subset: ..., split: ...}, {dataset_info: FILE, name: ...}, or a list of these"
        )
    kind: type[HubSplit | ListedDataset | GivenRows] = kinds[found[0]]  # type: ignore[assignment]
    for name in value:
        if name not in kind.model_fields:
            raise ValueError(f"has no key {name!r}{nearest(str(name), list(kind.model_fields))}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{first['loc'][0]}: {message[0].lower()}{message[1:]}") from None
