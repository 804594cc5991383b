"""JSONL, one row per line. Plain files are read again by offset, gzip files from a copy."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from firstsight.data.containers.base import Container, Row, Spooled
from firstsight.data.containers.text import decode, lines, parse_json, skip_mark
from firstsight.errors import DataError

_ONE_ROW = 2**14  # bytes read for one row, if that is enough


class JsonLines(Container):
    """A plain JSONL file; a locator is the offset of a line."""

    def rows(self) -> Iterator[Row]:
        """Every line that is not blank."""
        with self.path.open("rb") as file:
            yield from _rows(file, self)

    def row(self, locator: int) -> Any:
        """The row of a line."""
        with self.path.open("rb") as file:
            file.seek(locator)
            _, line = next(lines(file, locator, self.name, chunk=_ONE_ROW), (0, b""))
        place = f"{self.name}, byte {locator:,}"
        return parse_json(decode(line, place), place)

    def place(self, number: int) -> str:
        """`file:line`."""
        return f"{self.name}:{number}"


class GzipLines(Spooled):
    """A gzip JSONL file; a locator counts rows."""

    def rows(self) -> Iterator[Row]:
        """Every line that is not blank."""
        with gzip.open(self.path, "rb") as file:
            for count, (_, number, value) in enumerate(_rows(cast(BinaryIO, file), self)):
                yield count, number, value

    def place(self, number: int) -> str:
        """`file:line`."""
        return f"{self.name}:{number}"


def _rows(file: BinaryIO, container: Container) -> Iterator[Row]:
    begin = skip_mark(file, container.name)
    rows, opened = 0, None  # the fault of a first line that may begin an object of several lines
    for number, (offset, line) in enumerate(lines(file, begin, container.name), start=1):
        if not line.strip():
            continue
        if opened and not line.startswith(b"{"):
            raise DataError(
                f"{container.place(opened[1])}: a JSON object begins here that goes on in the next line; expected one row per line "
                "(JSONL), or a JSON array of rows, [{...}, ...]; write the rows in one of these ways"
            )
        if opened:
            yield opened
        rows, opened = rows + 1, None
        place = container.place(number)
        try:
            yield offset, number, parse_json(decode(line, place), place)
        except DataError as error:
            if rows == 1 and line.rstrip().endswith((b"{", b"[", b",")):
                opened = (offset, number, error)
            else:
                yield offset, number, error
    if opened:
        yield opened
