"""Rows that Python gave: a list of dictionaries, or a `datasets.Dataset`; read as those of a file are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from firstsight.data.containers.arrow import check_names
from firstsight.data.containers.base import Container, Row
from firstsight.data.containers.hub import DatasetRows
from firstsight.data.entries import GivenRows, is_dataset
from firstsight.errors import DataError


def given_container(given: GivenRows, name: str) -> Container:
    """The rows that an entry holds. DataError: a recipe was read that only names them."""
    return GivenDataset(given.held, name) if is_dataset(given.held) else GivenList(given.held, name)


class GivenList(Container):
    """Rows of a list; a locator counts them. What is done with a row leaves the list as it is."""

    def __init__(self, rows: tuple[Any, ...], name: str) -> None:
        super().__init__(Path(name), name)
        self._rows = rows

    def rows(self) -> Iterator[Row]:
        """Every row."""
        for index in range(len(self._rows)):
            try:
                yield index, index + 1, self.row(index)
            except DataError as error:
                yield index, index + 1, error

    def row(self, locator: int) -> Any:
        """A copy of one row."""
        place = self.place(locator + 1)
        try:
            return _plain(self._rows[locator], place, "the row")
        except RecursionError:
            raise DataError(f"{place}: nested too deeply; repair the row") from None


class GivenDataset(DatasetRows):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, name: str) -> None:
        super().__init__(Path(name), name)
        self._dataset = dataset

    @cached_property
    def _rows(self) -> Any:
        form = self._dataset.format
        if form["type"] == "custom":
            raise DataError(
                f"{self.name}: has a transform (set_transform), which makes other rows each time; write its rows with map, and "
                "reset_format()"
            )
        columns = None if form["type"] is None else form["columns"]
        rows = self._dataset.with_format("arrow", columns=columns)
        check_names(self._dataset.features.arrow_schema, self.name)
        return rows


_PLAIN = (type(None), bool, int, float, str, bytes)
_MISSING = ("NAType", "NaTType")
"""Types of pandas for a missing value; NaN, its third way to say it, is null in a row of any container."""
_REMEDIES = {
    "PIL": "give the path of a picture, or the bytes of its file; datasets.Dataset.from_list makes these of PIL pictures",
    "numpy": "call tolist() of it",
    "torch": "call tolist() of it",
}


def _plain(value: Any, place: str, owner: str) -> Any:
    """A copy of a value in the types that files have. DataError: another type, by name."""
    if type(value).__name__ in _MISSING and type(value).__module__.partition(".")[0] == "pandas":
        return None
    if isinstance(value, _PLAIN) and type(value).__module__ != "numpy":
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{place}: {owner} has the key {key!r:.80}; keys are texts")
        return {key: _plain(each, place, f"{key!r}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, place, owner) for each in value]
    if isinstance(value, PurePath):
        return str(value)
    kind = type(value)
    remedy = _REMEDIES.get(kind.__module__.partition(".")[0], "repair the row")
    raise DataError(
        f"{place}: {owner} holds a value of the type {kind.__module__}.{kind.__qualname__}; expected texts, numbers, true or false, "
        f"None, bytes, lists and dictionaries; {remedy}"
    )
