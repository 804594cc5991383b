"""Parquet files, and the directories that `Dataset.save_to_disk` writes, through pyarrow (extra `[data]`)."""

from __future__ import annotations

import bisect
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from firstsight.data.containers.base import Container, Row
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
    """A Parquet file; a locator counts rows. One row group is kept for rows that are read again."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._lock = threading.Lock()
        self._group: tuple[int, Any] = (-1, None)

    def rows(self) -> Iterator[Row]:
        """Every row."""
        number = 0
        for batch in _guarded(self._file.iter_batches(batch_size=_ROWS_AT_ONCE), self.name):
            for value in batch.to_pylist():
                yield number, number + 1, value
                number += 1

    def row(self, locator: int) -> Any:
        """One row."""
        with self._lock:
            group = bisect.bisect_right(self._starts, locator) - 1
            if self._group[0] != group:
                self._group = (group, next(_guarded(iter([self._file.read_row_group(group)]), self.name)))
            return self._group[1].slice(locator - self._starts[group], 1).to_pylist()[0]

    @cached_property
    def _file(self) -> Any:
        arrow = _arrow(self.name)
        try:
            return arrow.parquet.ParquetFile(self.path)
        except (arrow.ArrowException, OSError) as error:
            raise _damaged(self.name, error) from None

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for group in range(self._file.num_row_groups):
            starts.append(starts[-1] + self._file.metadata.row_group(group).num_rows)
        return starts[:-1]


class ArrowDirectory(Container):
    """A directory of `save_to_disk`, mapped into memory; a locator counts rows."""

    def rows(self) -> Iterator[Row]:
        """Every row."""
        for start in range(0, self._table.num_rows, _ROWS_AT_ONCE):
            for place, value in enumerate(self._table.slice(start, _ROWS_AT_ONCE).to_pylist(), start=start):
                yield place, place + 1, value

    def row(self, locator: int) -> Any:
        """One row."""
        return self._table.slice(locator, 1).to_pylist()[0]

    @cached_property
    def _table(self) -> Any:
        arrow = _arrow(self.name)
        try:
            state = json.loads((self.path / "state.json").read_bytes())
            files = [self.path / entry["filename"] for entry in state["_data_files"]]
            if state.get("_indices_data_files"):
                raise DataError(
                    f"{self.name}: has an index of chosen rows; call flatten_indices() and save_to_disk again"
                )
            tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
            return arrow.concat_tables(tables)
        except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise error if isinstance(error, DataError) else _damaged(self.name, error) from None


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
    return DataError(f"{name}: cannot be read ({' '.join(str(error).split())}); make it again")
