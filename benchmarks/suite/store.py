"""The store against plain ways to keep the same numbers: size, writing, reading everything, samples in a shuffled order.

    python -m benchmarks --only store

    zarr       the same arrays (ids uint32, values float16) in a zarr group with its own defaults
    arrays     the same in .npy files, memory-mapped
    datasets   a dataset of `datasets` with one row per sample, as `save_to_disk` writes it (if it is installed)
    plain      bytes of the same numbers without compression

A cache is written with fsync and a sha256 of every object, and every byte is checked when it is read; the others do neither. All
files that are read are in the page cache. The targets are made up (`suite/made_up.py`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks.storage import cut, write_cache
from benchmarks.storage_exact import ANSWER, cache_walk
from benchmarks.storage_exact import write_cache as write_exact
from benchmarks.suite import made_up
from benchmarks.suite.result import Outcome, Unit, compared, missing
from storage.exact import open_exact_cache
from storage.reader import open_cache
from storage.targets import SampleTargets

Arrays = dict[str, NDArray[Any]]
_CHUNK = 4096
_PEER = ("store.size.datasets", "store.write.datasets", "store.read.datasets", "store.samples.datasets")


class Ours:
    """A top_k cache."""

    def __init__(self, samples: Sequence[SampleTargets], words: int) -> None:
        self.samples, self.words = samples, words

    def write(self, place: Path) -> None:
        """Commit every unit."""
        write_cache(place, self.samples, self.words)

    def read(self, place: Path) -> None:
        """Every unit, checked and decoded."""
        cache = open_cache(place, memory_budget=0)
        for name in cache.units():
            cache.read_unit(name)

    def look_up(self, place: Path) -> Callable[[int], object]:
        """A sample by its number, from decoded units."""
        cache = open_cache(place, memory_budget=2**34)
        for sample in self.samples:
            cache[sample.key]
        return lambda number: cache[self.samples[number].key]


class Zarr:
    """A group with zarr's defaults."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def write(self, place: Path) -> None:
        """Every array."""
        group = zarr.open_group(place, mode="w")
        for name, array in self.arrays.items():
            group.create_array(name, data=array, chunks=(min(_CHUNK, len(array)), *array.shape[1:]))

    def read(self, place: Path) -> None:
        """Every array whole."""
        group: Any = zarr.open_group(place, mode="r")
        for name in self.arrays:
            group[name][:]


class Files:
    """A .npy file for every array, memory-mapped."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def write(self, place: Path) -> None:
        """Every array."""
        place.mkdir()
        for name, array in self.arrays.items():
            np.save(place / f"{name}.npy", array)

    def look_up(self, place: Path) -> Callable[[int], object]:
        """A sample by its number."""
        mapped = [np.load(place / f"{name}.npy", mmap_mode="r") for name in self.arrays]
        size = ANSWER
        return lambda number: [np.array(each[number * size : (number + 1) * size]) for each in mapped]


class Rows:
    """A dataset of `datasets` with one row per sample."""

    def __init__(self, arrays: Arrays) -> None:
        count = len(arrays["ids"]) // ANSWER
        self.columns = {
            name: list(array[: count * ANSWER].reshape(count, ANSWER, *array.shape[1:]))
            for name, array in arrays.items()
        }

    def write(self, place: Path) -> None:
        """`save_to_disk`."""
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        Dataset.from_dict(self.columns).save_to_disk(place)

    def read(self, place: Path) -> None:
        """Every row, a thousand at a time."""
        for batch in self._opened(place).iter(batch_size=1000):
            batch["ids"]

    def look_up(self, place: Path) -> Callable[[int], object]:
        """A row by its number."""
        rows = self._opened(place)
        return lambda number: rows[number]

    def _opened(self, place: Path) -> Any:
        from datasets import load_from_disk

        return load_from_disk(place).with_format("numpy")


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    positions, words, turns = (640, 2048, 2) if quick else (20_480, 32_768, 5)
    whole = made_up.arrays(positions, words)
    samples = cut(whole, ANSWER)
    plain = {name: array if array.dtype == np.uint32 else array.astype(np.float16) for name, array in whole.items()}
    absent = missing("datasets", *_PEER)
    ways: dict[str, Any] = {"ours": Ours(samples, words), "zarr": Zarr(plain), "arrays": Files(plain)}
    if not absent:
        ways["datasets"] = Rows(plain)
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for turn in range(turns):
        for name in ways if turn % 2 == 0 else reversed(ways):
            way, figures = ways[name], found[name]
            with tempfile.TemporaryDirectory() as directory:
                place = Path(directory, name)
                figures.setdefault("write", []).append(seconds(way.write, place))
                figures.setdefault("size", []).append(float(size_of(place)))
                if hasattr(way, "read"):
                    figures.setdefault("read", []).append(seconds(way.read, place))
                if hasattr(way, "look_up"):
                    look_up = way.look_up(place)
                    figures.setdefault("samples", []).append(seconds(_all, look_up, order))
    raw = float(sum(array.nbytes for array in plain.values()))
    ours = found["ours"]
    outcomes: list[Outcome] = [
        compared(
            "store.size.plain",
            f"a cache of {positions:,} positions, k = {whole['ids'].shape[1]}",
            "the same numbers without compression",
            mine=ours["size"][:1],
            theirs=[raw],
            unit="bytes",
        )
    ]
    for name in [name for name in ways if name != "ours"]:
        for figure, what in _WHAT.items():
            if figure in found[name]:
                unit: Unit = "bytes" if figure == "size" else "s"
                keep = slice(1) if figure == "size" else slice(None)  # sizes do not vary
                mine, theirs = ours[figure][keep], found[name][figure][keep]
                title = f"store.{figure}.{name}"
                outcomes.append(compared(title, what, _BASELINES[name], mine=mine, theirs=theirs, unit=unit))
    return [*outcomes, *_exact(quick), *absent]


_WHAT = {
    "size": "a cache on disk",
    "write": "writing a cache, fsync and sha256 included",
    "read": "reading a whole cache, every byte checked",
    "samples": "every sample of decoded units, in a shuffled order",
}
_BASELINES = {
    "zarr": "the same arrays in a zarr group with its defaults",
    "arrays": "the same arrays in .npy files",
    "datasets": "the same rows in a dataset of `datasets`",
}


def _exact(quick: bool) -> list[Outcome]:
    """States of the teacher against their plain bits."""
    positions, width, turns = (320, 64, 2) if quick else (4080, 3584, 5)
    states = made_up.states(positions, width)
    mine, theirs = [], []
    with tempfile.TemporaryDirectory() as directory:
        place, file = Path(directory, "cache"), Path(directory, "states.npy")
        write_exact(place, states, positions)
        np.save(file, states)
        cache = open_exact_cache(place, memory_budget=0)
        (unit,) = cache.units()
        for _ in range(turns):
            mine.append(seconds(cache_walk, cache, unit))
            theirs.append(seconds(np.load, file))
        stored = float(size_of(place / "units"))
    what = f"{positions:,} states of width {width:,} in bfloat16"
    return [
        compared(
            "store.size.exact",
            f"a unit of {what}",
            "their bits",
            mine=[stored],
            theirs=[float(states.nbytes)],
            unit="bytes",
        ),
        compared(
            "store.read.exact",
            f"reading and checking {what}",
            "reading a .npy file",
            mine=mine,
            theirs=theirs,
            unit="s",
        ),
    ]


def _all(look_up: Callable[[int], object], order: Sequence[int]) -> None:
    for number in order:
        look_up(number)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


def size_of(place: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
