"""A set of 64-bit numbers in 9 bytes each: what rows were seen, for millions of them."""

from __future__ import annotations

from array import array

_BUCKETS = 2**15


class NumberSet:
    """Numbers of 64 bits, spread evenly (digests, hashes). A look-up scans one of 32,768 arrays."""

    def __init__(self) -> None:
        self._buckets: list[array[int] | None] = [None] * _BUCKETS

    def __contains__(self, number: int) -> bool:
        bucket = self._buckets[number % _BUCKETS]
        return bucket is not None and number in bucket

    def add(self, number: int) -> bool:
        """Add a number from 0 to 2^64 - 1; whether it is new."""
        bucket = self._buckets[number % _BUCKETS]
        if bucket is None:
            bucket = self._buckets[number % _BUCKETS] = array("Q")
        elif number in bucket:
            return False
        bucket.append(number)
        return True


def text_mark(text: str) -> int:
    """64 bits that stand for a text in this process."""
    return hash(text) % 2**64
