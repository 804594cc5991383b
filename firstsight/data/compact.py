"""A set of 64-bit numbers in about 10 bytes each, to remember which of millions of rows were seen."""

from __future__ import annotations

from array import array

_MOST = 64  # numbers of a bucket, on average


class NumberSet:
    """A set of evenly spread 64-bit numbers (digests, hashes). A look-up scans one short array; there are more arrays as the set grows."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(64)]
        self._count = 0

    def __contains__(self, number: int) -> bool:
        return number in self._buckets[number % len(self._buckets)]

    def add(self, number: int) -> bool:
        """Add a number from 0 to 2^64 - 1. Returns whether it is new."""
        bucket = self._buckets[number % len(self._buckets)]
        if number in bucket:
            return False
        bucket.append(number)
        self._count += 1
        if self._count > _MOST * len(self._buckets):
            self._split()
        return True

    def _split(self) -> None:
        """Double the buckets: each number stays where it is, or moves to the new bucket at the same offset in the second half."""
        size = len(self._buckets)
        moved = []
        for place, bucket in enumerate(self._buckets):
            moved.append(array("Q", [number for number in bucket if number % (2 * size) != place]))
            self._buckets[place] = array("Q", [number for number in bucket if number % (2 * size) == place])
        self._buckets += moved


def text_mark(text: str) -> int:
    """64 bits that identify a text in this process."""
    return hash(text) % 2**64
