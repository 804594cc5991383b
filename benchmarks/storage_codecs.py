"""Ways to store ids, values and tails, side by side: those that the format uses and those that were tried and dropped.

    python -m benchmarks.storage_codecs --targets build/storage_targets.npz

Prints bytes per position over units of 4,096 positions, with the cost of every escape and dictionary.
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from storage.format.chunks import encode_chunk
from storage.format.layout import Layout
from storage.format.v1.arrays import VALUE_STEP
from storage.format.v1.encoding import encode_targets
from storage.format.v1.values import ESCAPE
from storage.targets import Targets

UNIT = 4096
NODES = (1.0, 1.5, 2.0, 4.0)


def shuffled(array: NDArray[Any], level: int = 5) -> int:
    """Bytes after blosc's byte shuffle and zstd."""
    return len(blosc.compress(np.ascontiguousarray(array), b"zstd", level, blosc.SHUFFLE, 0)) if array.size else 0


def plain(array: NDArray[Any], level: int = 1) -> int:
    """Bytes after zstd alone."""
    return len(zstd.compress(np.ascontiguousarray(array), level))


def blocks(array: NDArray[Any], size: int) -> int:
    """Bytes after zstd in blocks of their own entropy tables."""
    return len(blosc.compress(np.ascontiguousarray(array), b"zstd", 1, blosc.SHUFFLE, size))


def packed(gaps: NDArray[np.int64], radix: int, together: int, size: int) -> int:
    """Bytes of gaps packed several to a byte in a radix, with escapes."""
    rows = -(-len(gaps) // together) * together
    digits = np.zeros((rows, gaps.shape[1]), dtype=np.int64)
    digits[: len(gaps)] = np.minimum(gaps, radix - 1)
    symbols = np.zeros((rows // together, gaps.shape[1]), dtype=np.int64)
    for part in range(together):
        symbols = symbols * radix + digits[part::together]
    return blocks(symbols.astype(np.uint8), size) + shuffled(gaps[gaps >= radix - 1].astype(np.uint32))


def rows_of(unit: dict[str, NDArray[Any]]) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every way to store one unit."""
    ids, values, tail = unit["ids"], unit["logprobs"], unit["tail"]
    count = len(ids)
    size = int(ids.max()) + 1
    layout = Layout(top_k=ids.shape[1], temperatures=NODES, vocabulary_size=size, shared_ids=((0, size),))
    _, arrays = encode_targets(Targets(**unit, soft=np.ones(count, dtype=np.bool_)), layout)
    chunk: Callable[[str], int] = lambda name: len(encode_chunk(arrays[name])) if arrays[name].size else 0  # noqa: E731
    words, ranks = np.unique(ids, return_inverse=True)
    by_count = np.empty(len(words), dtype=np.int64)
    by_count[np.argsort(-np.bincount(ranks.ravel()))] = np.arange(len(words))
    frequent = by_count[ranks.reshape(ids.shape)].T
    yield "ids: format (token, extra, dictionary)", chunk("id_token") + chunk("id_extra") + chunk("id_dictionary")
    yield "ids: uint32, shuffle, zstd 5", shuffled(ids)
    yield "ids: uint32, ranks first, shuffle, zstd 5", shuffled(ids.T)
    yield "ids: uint32, zstd 9", plain(ids, 9)
    yield (
        "ids: uint16 by frequency, shuffle, zstd 5 + dictionary",
        shuffled(frequent.astype(np.uint16)) + 2 * len(words),
    )
    yield (
        "ids: uint16 by frequency, lzma + dictionary",
        len(lzma.compress(frequent.astype("<u2").tobytes())) + 2 * len(words),
    )
    yield "ids: token in one block", plain(arrays["id_token"]) + chunk("id_extra") + chunk("id_dictionary")
    steps = np.rint(-values.astype(np.float64).T / VALUE_STEP).astype(np.int64)
    gaps = np.diff(steps, axis=0, prepend=0)
    yield "values: format (pairs of gaps, escapes)", chunk("gap") + chunk("gap_escape")
    yield "values: pairs in one block", packed(gaps, ESCAPE + 1, 2, 2**30)
    yield "values: one gap a byte, blocks of 32 KiB", blocks(np.minimum(gaps, 255).astype(np.uint8), 2**15)
    yield "values: one gap a byte, one block", plain(np.minimum(gaps, 255).astype(np.uint8))
    yield "values: one gap a byte, zstd 9", plain(np.minimum(gaps, 255).astype(np.uint8), 9)
    yield "values: three gaps a byte (radix 6)", packed(gaps, 6, 3, 2**15)
    yield "values: fp16, shuffle, zstd 5", shuffled(values.astype(np.float16))
    yield "tail: format (differences along temperature)", chunk("tail")
    codes = np.cumsum(arrays["tail"], axis=0, dtype=np.uint16)
    yield "tail: codes themselves", shuffled(codes)
    yield "tail: second differences", shuffled(np.diff(codes, n=2, axis=0, prepend=np.zeros((2, count), np.uint16)))
    yield "tail: fp16, shuffle, zstd 5", shuffled(tail.astype(np.float16))
    yield "target log-probability: fp16 (format)", chunk("target_logprob")
    yield "target: rank (format)", chunk("target")
    yield "target: id as uint32", shuffled(unit["target_ids"])


def main() -> None:
    """Print the sums over all whole units."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=Path, required=True)
    options = parser.parse_args()
    with np.load(options.targets) as file:
        whole = {name: file[name] for name in ("ids", "logprobs", "tail", "target_ids", "target_logprobs")}
    units = len(whole["ids"]) // UNIT
    sums: dict[str, int] = {}
    for number in range(units):
        unit = {name: array[number * UNIT : (number + 1) * UNIT] for name, array in whole.items()}
        for name, size in rows_of(unit):
            sums[name] = sums.get(name, 0) + size
    for name, total in sums.items():
        print(f"{name:<58}{total / units / UNIT:8.2f}")


if __name__ == "__main__":
    main()
