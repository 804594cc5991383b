"""The samples of a dump by key, without holding them: rows are parsed again when they are needed.

index = SampleIndex.build([train, validation], root, positions)
sample = index[key]

What is held is where each row lies: 70 bytes a sample (docs/log.md compares it with a dictionary and with SQLite).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firstsight.data.samples import Sample, file_digest, parse_line
from firstsight.errors import DataError
from storage.plan import PlannedSample

_KEY_BYTES = 32


class SampleIndex:
    """Samples of some data files by key; see `build`."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self._files = tuple(files)
        self._root = root
        # one entry a row, in the files' order
        self._keys = bytearray()
        self._images = array("Q")  # equal for rows about the same images
        self._positions = array("I")
        self._file = array("H")
        self._offset = array("Q")
        self._line = array("I")
        # rows in the order of the first 8 bytes of their keys, and these bytes
        self._by_key: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._prefixes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

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
            files: JSONL files, checked before (`samples.iter_samples`).
            root: directory of the image paths.
            positions: answer positions of a sample; may refuse it.
            progress: called once a row.
        """
        index = cls(files, root)
        for number, path in enumerate(files):
            for offset, line, text in _lines(path):
                sample = parse_line(text, root, f"{path.name}:{line}")
                images = hashlib.blake2b(repr(_image_digests(sample)).encode(), digest_size=8).digest()
                index._keys += bytes.fromhex(sample.key)
                index._images.append(int.from_bytes(images))
                index._positions.append(positions(sample))
                index._file.append(number)
                index._offset.append(offset)
                index._line.append(line)
                progress()
        prefixes = np.frombuffer(index._keys, dtype=">u8")[:: _KEY_BYTES // 8].astype(np.uint64)
        index._by_key = prefixes.argsort(kind="stable").astype(np.uint32)
        index._prefixes = prefixes[index._by_key]
        return index

    def __len__(self) -> int:
        """Rows, those with equal keys included."""
        return len(self._line)

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
        path = self._files[self._file[row]]
        place = f"{path.name}:{self._line[row]}"
        with path.open("rb") as file:
            file.seek(self._offset[row])
            sample = parse_line(file.readline(), self._root, place)
        if sample.key != key:
            raise DataError(f"{place}: the row or its images were changed while the dump ran; start it again")
        return sample

    def planned(self) -> Iterator[PlannedSample]:
        """Keys and positions of all rows; rows about the same images one after the other, else in the files' order."""
        if not len(self):
            return
        _, first, group = np.unique(
            np.frombuffer(self._images, dtype=np.uint64), return_index=True, return_inverse=True
        )
        for row in first[group].argsort(kind="stable"):
            yield PlannedSample(key=self._key(row).hex(), positions=self._positions[row])

    def _find(self, key: str) -> int | None:
        """The first row with this key."""
        wanted = bytes.fromhex(key)
        prefix = np.uint64(int.from_bytes(wanted[:8]))
        start, stop = self._prefixes.searchsorted(prefix), self._prefixes.searchsorted(prefix, side="right")
        return next((int(row) for row in self._by_key[start:stop] if self._key(row) == wanted), None)

    def _key(self, row: int | np.integer) -> bytes:
        return bytes(self._keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES])


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
