"""Parquet files and directories of them, and what `Dataset.save_to_disk` writes, through pyarrow (extra `[data]`)."""

from __future__ import annotations

import bisect
import json
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from firstsight.data.containers.base import Container, Row
from firstsight.data.containers.text import decode, parse_json
from firstsight.errors import DataError

_ROWS_AT_ONCE = 64


def _arrow(name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{name}: Parquet and Arrow need pyarrow: pip install 'firstsight[data]'") from None
    return pyarrow


class Parquet(Container):
    """Parquet files, one after the other; a locator counts rows. One row group is kept in memory for rows that are read again."""

    def __init__(self, path: Path, name: str, parts: Sequence[Path] = ()) -> None:
        super().__init__(path, name)
        self._parts = parts or (path,)
        self._lock = threading.Lock()
        self._group: tuple[int, Any] = (-1, None)

    def rows(self) -> Iterator[Row]:
        """Every row."""
        number = 0
        for file in self._files:
            for batch in _guarded(file.iter_batches(batch_size=_ROWS_AT_ONCE), self.name):
                for value in values(batch, self, number):
                    yield number, number + 1, value
                    number += 1

    def row(self, locator: int) -> Any:
        """One row."""
        with self._lock:
            group = bisect.bisect_right(self._starts, locator) - 1
            if self._group[0] != group:
                file, inner = self._groups[group]
                self._group = (group, next(_guarded(iter([file.read_row_group(inner)]), self.name)))
            return one_value(self._group[1].slice(locator - self._starts[group], 1), self, locator)

    @cached_property
    def _files(self) -> list[Any]:
        arrow = _arrow(self.name)
        files = []
        for part in self._parts:
            try:
                files.append(arrow.parquet.ParquetFile(part))
            except (arrow.ArrowException, OSError) as error:
                raise _damaged(self.name if part == self.path else f"{self.name}/{part.name}", error) from None
            check_names(files[-1].schema_arrow, self.name)
        return files

    @cached_property
    def _groups(self) -> list[tuple[Any, int]]:
        """File and number in it of every row group."""
        return [(file, group) for file in self._files for group in range(file.num_row_groups)]

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of every row group."""
        starts = [0]
        for file, group in self._groups:
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts[:-1]


class Tables(Container):
    """Rows of an Arrow table, mostly mapped into memory; a locator counts rows."""

    def rows(self) -> Iterator[Row]:
        """Every row."""
        for start in range(0, self.count, _ROWS_AT_ONCE):
            for place, value in enumerate(values(self.part(start, _ROWS_AT_ONCE), self, start), start=start):
                yield place, place + 1, value

    def row(self, locator: int) -> Any:
        """One row."""
        return one_value(self.part(locator, 1), self, locator)

    @property
    @abstractmethod
    def count(self) -> int:
        """Rows."""

    @abstractmethod
    def part(self, start: int, count: int) -> Any:
        """Rows from `start` on, at most `count`, as a table."""


class ArrowDirectory(Tables):
    """A directory of `save_to_disk`, mapped into memory."""

    @property
    def count(self) -> int:
        """Rows."""
        rows: int = self._table.num_rows
        return rows

    def part(self, start: int, count: int) -> Any:
        """Rows from `start` on."""
        return self._table.slice(start, count)

    @cached_property
    def _table(self) -> Any:
        arrow = _arrow(self.name)
        place = f"{self.name}/state.json"
        state = parse_json(decode((self.path / "state.json").read_bytes(), place), place)
        try:
            files = [self.path / entry["filename"] for entry in state["_data_files"]]
            if state.get("_indices_data_files"):
                raise DataError(
                    f"{self.name}: is a selection of rows with an index; call flatten_indices() and save_to_disk again"
                )
            tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
            table = arrow.concat_tables(tables)
        except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise error if isinstance(error, DataError) else _damaged(self.name, error) from None
        check_names(table.schema, self.name)
        return table


def values(table: Any, container: Container, first: int) -> list[Any]:
    """The rows of a small table as plain values, or a DataError in the place of a row that cannot be read."""
    labels = _labels(table.schema)
    try:
        return [_named(row, labels) for row in table.to_pylist()]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, times out of range: row by row
        if table.num_rows == 1:
            return [DataError(f"{container.place(first + 1)}: cannot be read ({error}); correct the row")]
        return [value for n in range(table.num_rows) for value in values(table.slice(n, 1), container, first + n)]


def one_value(table: Any, container: Container, locator: int) -> Any:
    """The row of a table of one."""
    (value,) = values(table, container, locator)
    if isinstance(value, DataError):
        raise value
    return value


def check_names(schema: Any, name: str) -> None:
    """Raise DataError if two columns have the same name."""
    if twice := [column for column in schema.names if schema.names.count(column) > 1]:
        raise DataError(f"{name}: has the column {twice[0]!r} twice; rename one")


def _labels(schema: Any) -> dict[str, list[str]]:
    """Columns of `ClassLabel`s, which hold numbers, and the name of each number."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _named(row: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    for column, names in labels.items():
        if isinstance(number := row.get(column), int) and -1 <= number < len(names):
            row[column] = names[number] if number >= 0 else None  # -1: no label
    return row


def _guarded(items: Iterator[Any], name: str) -> Iterator[Any]:
    arrow = _arrow(name)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (arrow.ArrowException, OSError) as error:
            raise _damaged(name, error) from None
        yield item


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: cannot be read ({' '.join(str(error).split())}); create the file again")
