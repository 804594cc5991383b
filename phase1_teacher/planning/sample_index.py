"""The samples of a dump by key. Rows are not held in memory, but read again when they are needed.

index = SampleIndex.build(recipe.sources(), positions)
sample = index[key]

The index holds where each row is: 70 bytes per sample (docs/log.md compares it with a dictionary and with SQLite).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from firstsight.data.images import image_digest
from firstsight.data.samples import Sample, SampleFiles
from firstsight.data.source import DataSource
from firstsight.errors import DataError
from storage.plan import PlannedSample

_KEY_BYTES = 32


class SampleIndex:
    """Samples of some splits by key; see `build`."""

    def __init__(self, sources: Sequence[DataSource]) -> None:
        self._splits = [SampleFiles(source) for source in sources]
        # one entry per row, in the order of the files
        self._keys = bytearray()
        self._images = array("Q")  # equal for rows about the same images
        self._positions = array("I")
        self._split = array("B")
        self._file = array("H")
        self._locator = array("Q")
        self._line = array("I")
        # row numbers sorted by the first 8 bytes of the rows' keys, and these bytes
        self._by_key: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._prefixes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    @classmethod
    def build(
        cls,
        sources: Sequence[DataSource],
        positions: Callable[[Sample], int],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> SampleIndex:
        """Read the files once.

        Args:
            sources: the splits, which passed `samples.check_files`.
            positions: counts the answer positions of a sample; may refuse it.
            progress: called once per row.
        """
        index = cls(sources)
        for split, files in enumerate(index._splits):
            for located in files.located():
                sample = located.sample
                images = hashlib.blake2b(repr(_image_digests(sample)).encode(), digest_size=8).digest()
                index._keys += bytes.fromhex(sample.key)
                index._images.append(int.from_bytes(images))
                index._positions.append(positions(sample))
                index._split.append(split)
                index._file.append(located.file)
                index._locator.append(located.locator)
                index._line.append(located.number)
                progress()
        prefixes = np.frombuffer(index._keys, dtype=">u8")[:: _KEY_BYTES // 8].astype(np.uint64)
        index._by_key = prefixes.argsort(kind="stable").astype(np.uint32)
        index._prefixes = prefixes[index._by_key]
        return index

    def __len__(self) -> int:
        """Number of rows, those with equal keys included."""
        return len(self._line)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __getitem__(self, key: str) -> Sample:
        """The sample of a key, read from its file.

        Raises:
            KeyError: no row has this key.
            DataError: the file or an image has changed since the index was built.
        """
        row = self._find(key)
        if row is None:
            raise KeyError(key)
        files = self._splits[self._split[row]]
        place = files.place(self._file[row], self._line[row])
        try:
            sample = files.sample(self._file[row], self._locator[row], self._line[row])
        except DataError as error:  # the row was valid when the index was built
            raise DataError(
                f"{place}: the row or its images changed during the dump ({error}); start it again"
            ) from None
        if sample.key != key:
            raise DataError(f"{place}: the row or its images changed during the dump; start it again")
        return sample

    def planned(self) -> Iterator[PlannedSample]:
        """Keys and positions of all rows in the order of the files, but rows about the same images follow each other."""
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
    # each sample without images is a group of its own
    return [image_digest(image) for image in sample.images] or [sample.key]
