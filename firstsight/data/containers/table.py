"""CSV and TSV with a header line: a row maps column names to texts; an empty cell is a missing value."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from firstsight.data.containers.base import Row, Spooled
from firstsight.data.containers.text import MAX_ROW_BYTES, decode, lines, parse_json, skip_mark
from firstsight.errors import DataError
from storage.wording import counted


def suffixes(path: Path) -> set[str]:
    """The endings of a file's name, in lower case."""
    return {suffix.lower() for suffix in path.suffixes}


class Table(Spooled):
    """A CSV file; a locator counts rows, and a number is the last line of a row."""

    def rows(self) -> Iterator[Row]:
        """Every record below the header."""
        csv.field_size_limit(MAX_ROW_BYTES)
        with self.path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain
            texts = self._texts(file)
            header_line = next(texts, "")
            tabs = ".tsv" in suffixes(self.path)
            delimiter = "\t" if tabs else max(",;\t", key=header_line.count)
            names = next(csv.reader([header_line], delimiter=delimiter), [])
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{self.name}: the header has the column {twice[0]!r} twice; rename one")
            reader = csv.reader(texts, delimiter=delimiter, strict=True)
            try:
                for count, cells in enumerate(filter(None, reader)):
                    number = reader.line_num + 1
                    yield count, number, self._row(names, cells, number)
            except csv.Error as error:
                raise DataError(f"{self.place(reader.line_num + 1)}: not CSV ({error}); correct the line") from None

    def place(self, number: int) -> str:
        """`file:line`."""
        return f"{self.name}:{number}"

    def _row(self, names: list[str], cells: list[str], number: int) -> object:
        place = self.place(number)
        if len(cells) != len(names):
            return DataError(
                f"{place}: has {counted(len(cells), 'cell')}, but the header has {counted(len(names), 'column')}; correct the line"
            )
        try:
            return {name: _value(cell, place) for name, cell in zip(names, cells, strict=True) if cell}
        except DataError as error:
            return error

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        begin = skip_mark(file, self.name)
        for number, (_, line) in enumerate(lines(file, begin, self.name), start=1):
            yield decode(line, self.place(number))


def _value(cell: str, place: str) -> Any:
    """A list or a mapping if the cell holds one as JSON; else the text."""
    return parse_json(cell, place) if cell.startswith(("[{", '["', "{")) and cell.endswith(("]", "}")) else cell
