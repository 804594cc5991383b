"""The samples of a dump by key, without holding them: rows are parsed again when they are needed.

index = SampleIndex.build([train, validation], root, positions)
sample = index[key]

A row costs 60 bytes here, whatever its text and images are: half a million rows are 30 MB.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstsight.errors import DataError
from firstsight.samples import Sample, file_digest, parse_line
from storage.plan import PlannedSample

_KEY_BYTES = 32


class SampleIndex:
    """Samples of some data files by key; see `build`."""

    def __init__(self, files: Sequence[Path], root: Path, rows: dict[str, NDArray[Any]]) -> None:
        self._files = tuple(files)
        self._root = root
        self._rows = rows
        words = rows["key"][:, :8].copy().view(np.uint64)[:, 0]
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]

    @classmethod
    def build(
        cls,
        files: Sequence[Path],
        root: Path,
        positions: Callable[[Sample], int],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> SampleIndex:
        """Read the files once.

        Args:
            files: JSONL files, checked before (`samples.check_files`).
            root: of the image paths.
            positions: answer positions of a sample; may refuse it.
            progress: called once a row.
        """
        keys, words = bytearray(), bytearray()
        numbers = {name: array("q") for name in ("file", "offset", "line", "positions")}
        for number, path in enumerate(files):
            for offset, line, text in _lines(path):
                sample = parse_line(text, root, f"{path.name}:{line}")
                keys += bytes.fromhex(sample.key)
                words += hashlib.blake2b(repr(_image_digests(sample)).encode(), digest_size=8).digest()
                for name, value in (("file", number), ("offset", offset), ("line", line)):
                    numbers[name].append(value)
                numbers["positions"].append(positions(sample))
                progress()
        rows: dict[str, NDArray[Any]] = {
            "key": np.frombuffer(keys, dtype=np.uint8).reshape(-1, _KEY_BYTES),
            "images": np.frombuffer(words, dtype=np.uint64),
            **{name: np.frombuffer(values, dtype=np.int64) for name, values in numbers.items()},
        }
        return cls(files, root, rows)

    def __len__(self) -> int:
        """Rows, those with equal keys included."""
        return len(self._order)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __getitem__(self, key: str) -> Sample:
        """The sample of a key, read from its file.

        Raises:
            KeyError: no row has this key.
            DataError: the file or an image was changed since the index was built.
        """
        row = self._find(key)
        if row is None:
            raise KeyError(key)
        path = self._files[int(self._rows["file"][row])]
        place = f"{path.name}:{self._rows['line'][row]}"
        with path.open("rb") as file:
            file.seek(int(self._rows["offset"][row]))
            sample = parse_line(file.readline(), self._root, place)
        if sample.key != key:
            raise DataError(f"{place}: the row or its images were changed while the dump ran; start it again")
        return sample

    def planned(self) -> Iterator[PlannedSample]:
        """Keys and positions of all rows; rows about the same images one after the other, else in the files' order."""
        _, first, group = np.unique(self._rows["images"], return_index=True, return_inverse=True)
        for row in np.argsort(first[group], kind="stable"):
            yield PlannedSample(key=self._rows["key"][row].tobytes().hex(), positions=int(self._rows["positions"][row]))

    def _find(self, key: str) -> int | None:
        raw = bytes.fromhex(key)
        word = np.frombuffer(raw[:8], dtype=np.uint64)[0]
        for place in range(int(np.searchsorted(self._words, word)), len(self._words)):
            if self._words[place] != word:
                return None
            row = int(self._order[place])
            if self._rows["key"][row].tobytes() == raw:
                return row
        return None


def _image_digests(sample: Sample) -> list[str]:
    # a sample without images is a group of its own
    return [file_digest(path) for path in sample.images] or [sample.key]


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, number from 1 and bytes of each line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield offset, number, text
            offset += len(text)
