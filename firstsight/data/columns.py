"""Whether the columns that `data.columns` and `data.ignore_columns` name are there: a name that no row has has no effect."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from firstsight.data.source import DataSource

_MOST = 1000
"""How many names of the rows are kept, to find the nearest."""


class ColumnUse:
    """Which of the columns that sources name the rows have had. Columns of a `dataset_info.json` may be absent, as in LLaMA-Factory."""

    def __init__(self) -> None:
        self._missing: dict[str, str] = {}
        self._seen: set[str] = set()
        self._names: dict[str, None] = {}

    def ask(self, source: DataSource) -> None:
        """Look for the columns that a source names."""
        asked = (
            {} if source.mapped_only else {theirs: f"data.columns: {ours}" for ours, theirs in source.columns.items()}
        )
        asked |= dict.fromkeys(sorted(source.ignore_columns), "data.ignore_columns")
        self._missing |= {name: key for name, key in asked.items() if name not in self._seen}

    def row(self, value: Any) -> None:
        """Take note of a row's columns; free once every name was found."""
        if not self._missing or not isinstance(value, Mapping):
            return
        for name in [name for name in self._missing if name in value]:
            del self._missing[name]
            self._seen.add(name)
        if len(self._names) < _MOST:
            self._names |= dict.fromkeys(value)

    def notes(self) -> list[str]:
        """A line for each name that no row has, with the nearest name of a column; none if there were no rows."""
        return [
            f"no row has a column {name!r} ({key}), so it has no effect{self._nearest(name)}"
            for name, key in self._missing.items()
            if self._names
        ]

    def _nearest(self, name: str) -> str:
        match = difflib.get_close_matches(name, [each for each in self._names if each not in self._seen], n=1)
        return f"; did you mean {match[0]!r}?" if match else ""
