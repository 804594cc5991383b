"""The interface of a file of rows."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firstsight.errors import DataError

Row = tuple[int, int, Any]
"""A locator to read the row again; its number from 1, for messages; the row, or a DataError that says what is wrong with it."""


class Container(ABC):
    """A file, or a directory, of rows.

    Args:
        path: of the file.
        name: what messages call it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row in order.

        Raises:
            DataError: the rest of the file cannot be read.
        """

    @abstractmethod
    def row(self, locator: int) -> Any:
        """Read one row again. Threads may call this at the same time."""

    def place(self, number: int) -> str:
        """What messages call a row."""
        return f"{self.name}: row {number}"


class Spooled(Container):
    """A file that can only be read from its beginning: a row that is read again comes from a temporary copy of all rows."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._lock = threading.Lock()
        self._spool: Any = None
        self._ends = array("Q", [0])

    def row(self, locator: int) -> Any:
        """One row again; `locator` counts rows from 0."""
        with self._lock:
            if self._spool is None:
                self._copy()
        begin, end = self._ends[locator], self._ends[locator + 1]
        value = pickle.loads(os.pread(self._spool.fileno(), end - begin, begin))  # our own file, without a name
        if isinstance(value, DataError):
            raise value
        return value

    def _copy(self) -> None:
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 as long as this object
        weakref.finalize(self, self._spool.close)
        for _, _, value in self.rows():
            self._spool.write(pickle.dumps(value))
            self._ends.append(self._spool.tell())
        self._spool.flush()
