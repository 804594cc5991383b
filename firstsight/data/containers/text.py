r"""Text files as bytes, lines and JSON: one way to split, decode and parse, with memory bounded for any content.

Lines end with `\n`, `\r\n` or `\r`, even mixed in one file. The encoding is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from firstsight.errors import DataError

MAX_ROW_BYTES = 64 * 2**20
"""A longer row is refused before it is read whole."""

_CHUNK = 2**16
_WIDE = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


def read_chunk(file: BinaryIO, size: int, place: str) -> bytes:
    """`file.read`; DataError: a damaged gzip file."""
    try:
        return file.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{place}: cannot be read ({error}); create the file again") from None


def skip_mark(file: BinaryIO, name: str) -> int:
    """Skip a byte order mark. Returns the offset after it. DataError: a mark of an encoding other than UTF-8."""
    head = read_chunk(file, 4, name)
    for mark, encoding in _WIDE.items():
        if head.startswith(mark):
            raise DataError(
                f"{name}: the encoding is {encoding}, expected UTF-8; convert it: iconv -f {encoding} -t UTF-8 {name} > new"
            )
    offset = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    file.seek(offset)
    return offset


def lines(file: BinaryIO, offset: int, name: str, *, chunk: int = _CHUNK) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line, including its end; also of blank lines.

    Args:
        file: at `offset`.
        offset: of the first line.
        name: of the file, for messages.
        chunk: bytes that are read at once.

    Raises:
        DataError: a line of more than `MAX_ROW_BYTES`.
    """
    pending = b""
    while data := read_chunk(file, chunk, name):
        if pending.endswith(b"\r"):  # the last chunk ended in it: `\r\n` or `\r` alone
            if data.startswith(b"\n"):
                pending, data = pending + b"\n", data[1:]
            yield offset, pending
            offset, pending = offset + len(pending), b""
        parts = data.splitlines(keepends=True)
        if parts and pending:
            parts[0] = pending + parts[0]
        elif pending:
            parts = [pending]
        pending = parts.pop() if parts and not parts[-1].endswith(b"\n") else b""
        for part in parts:
            yield offset, part
            offset += len(part)
        if len(pending) > MAX_ROW_BYTES:
            raise DataError(
                f"{name}: a line is longer than {MAX_ROW_BYTES // 2**20} MiB (it begins at byte {offset:,}); "
                "expected one row per line"
            )
    if pending:
        yield offset, pending


def decode(data: bytes, place: str) -> str:
    """UTF-8 text; DataError: another encoding, or a NUL byte."""
    if b"\0" in data:
        raise DataError(
            f"{place}: expected UTF-8, got a NUL byte: not text, UTF-16 without a byte order mark, or a damaged file"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; if the file is Latin-1, convert it: "
            "iconv -f LATIN1 -t UTF-8"
        ) from None


def parse_json(text: str, place: str) -> Any:
    """A JSON value; DataError: what is wrong with it, in one line."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise json_error(error, place) from None


def json_error(error: Exception, place: str) -> DataError:
    """The error of `DECODER` in one line."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{place}: not a JSON object ({reason}); correct the line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
