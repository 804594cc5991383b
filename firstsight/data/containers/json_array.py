"""A JSON array of rows, plain or gzip; read element by element, never whole."""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from firstsight.data.containers.base import Row, Spooled
from firstsight.data.containers.text import DECODER, MAX_ROW_BYTES, json_error, read_chunk, skip_mark
from firstsight.errors import DataError

_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonArray(Spooled):
    """A file that begins with `[`; a locator counts rows."""

    def rows(self) -> Iterator[Row]:
        """Every element."""
        with self.path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain
            skip_mark(file, self.name)
            yield from _Elements(file, self).rows()


class _Elements:
    """The elements of an array, and the part of the file that is read but not yet parsed."""

    def __init__(self, file: BinaryIO, owner: JsonArray) -> None:
        self._file = file
        self._owner = owner
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._ended = False

    def rows(self) -> Iterator[Row]:
        if self._next() != "[":
            raise DataError(f"{self._owner.name}: expected a JSON array of rows that begins with '['")
        self._at += 1
        if self._next() == "]":
            return
        number = 0
        while True:
            number += 1
            yield number - 1, number, self._element(number)
            mark = self._next()
            self._at += 1
            if mark == "]":
                break
            if mark != ",":
                found = repr(mark) if mark else "the end of the file"
                raise DataError(
                    f"{self._owner.place(number)}: expected ',' or ']' after it, got {found}; correct the file"
                )
            if self._next() == "]":
                raise DataError(f"{self._owner.place(number)}: a ',' after the last row; remove it")
        if self._next():
            raise DataError(f"{self._owner.name}: text follows the array's closing ']'; remove it")

    def _element(self, number: int) -> object:
        place = self._owner.place(number)
        if not self._next():
            raise DataError(f"{place}: the file ends inside the array; create it again")
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                # a number could continue in the part not read yet
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
                raise ValueError("not whole")
            except RecursionError as error:
                raise json_error(error, place) from None
            except ValueError as error:
                if self._ended or len(self._text) - self._at > MAX_ROW_BYTES:
                    raise json_error(error, place) from None
                self._more(max(_CHUNK, len(self._text) - self._at))

    def _next(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(_CHUNK)

    def _more(self, size: int) -> None:
        data = read_chunk(self._file, size, self._owner.name)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise DataError(
                f"{self._owner.name}: is not UTF-8; if the file is Latin-1, convert it: iconv -f LATIN1 -t UTF-8"
            ) from None
        if "\0" in text:
            raise DataError(f"{self._owner.name}: has a NUL byte; expected JSON in UTF-8")
        self._text, self._at = self._text[self._at :] + text, 0
