"""The samples of a dump by key, without holding them: rows are parsed again when they are needed.

index = SampleIndex.build([train, validation], root, positions)
sample = index[key]

Where each row lies is kept in a temporary file: memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from firstsight.data.samples import Sample, file_digest, parse_line
from firstsight.errors import DataError
from storage.plan import PlannedSample
from storage.temporary import temporary_database


class SampleIndex:
    """Samples of some data files by key; see `build`."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self._files = tuple(files)
        self._root = root
        self._rows = temporary_database(self)
        self._rows.execute(
            "CREATE TABLE rows (row INTEGER PRIMARY KEY, key BLOB, images BLOB, positions INTEGER, "
            "file INTEGER, offset INTEGER, line INTEGER)"
        )

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
            root: of the image paths.
            positions: answer positions of a sample; may refuse it.
            progress: called once a row.
        """
        index = cls(files, root)
        for number, path in enumerate(files):
            for offset, line, text in _lines(path):
                sample = parse_line(text, root, f"{path.name}:{line}")
                images = hashlib.blake2b(repr(_image_digests(sample)).encode(), digest_size=8).digest()
                index._rows.execute(
                    "INSERT INTO rows (key, images, positions, file, offset, line) VALUES (?, ?, ?, ?, ?, ?)",
                    (bytes.fromhex(sample.key), images, positions(sample), number, offset, line),
                )
                progress()
        index._rows.execute("CREATE INDEX by_key ON rows (key)")
        index._rows.execute("CREATE INDEX by_images ON rows (images, row)")
        return index

    def __len__(self) -> int:
        """Rows, those with equal keys included."""
        count: int = self._rows.execute("SELECT count(*) FROM rows").fetchone()[0]
        return count

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __getitem__(self, key: str) -> Sample:
        """The sample of a key, read from its file.

        Raises:
            KeyError: no row has this key.
            DataError: the file or an image was changed since the index was built.
        """
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        number, offset, line = found
        path = self._files[number]
        place = f"{path.name}:{line}"
        with path.open("rb") as file:
            file.seek(offset)
            sample = parse_line(file.readline(), self._root, place)
        if sample.key != key:
            raise DataError(f"{place}: the row or its images were changed while the dump ran; start it again")
        return sample

    def planned(self) -> Iterator[PlannedSample]:
        """Keys and positions of all rows; rows about the same images one after the other, else in the files' order."""
        first = "(SELECT min(row) FROM rows AS other WHERE other.images = rows.images)"
        for key, positions in self._rows.execute(f"SELECT key, positions FROM rows ORDER BY {first}, row"):
            yield PlannedSample(key=key.hex(), positions=positions)

    def _find(self, key: str) -> tuple[int, int, int] | None:
        """File, offset and line of the first row with this key."""
        query = "SELECT file, offset, line FROM rows WHERE key = ? ORDER BY row LIMIT 1"
        found: tuple[int, int, int] | None = self._rows.execute(query, (bytes.fromhex(key),)).fetchone()
        return found


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
