"""How time and memory grow from one size of the data to ten and a hundred times that size.

    python -m benchmarks --only growth

    rows     a file of rows of text, read, checked and indexed as a dump does before it plans
    plan     the units of a new cache
    index    the first opening of the cache, which builds the index
    open     every later one
    status   `fs-teacher status`
    memory   peak of all these, above what the process had before; each size is a process of its own

An exponent of 1 is growth in proportion to the samples, 0 is none. Answers have two positions and eight stored entries.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.machine import peak_mb
from benchmarks.storage import NODES
from benchmarks.suite.children import measured
from benchmarks.suite.result import Outcome, Unit, growth
from firstsight.data.source import DataSource
from phase1_teacher.planning.sample_index import SampleIndex
from storage.maintenance.status import cache_status
from storage.plan import PlannedSample
from storage.reader import open_cache
from storage.targets import SampleTargets, Targets
from storage.writer import create_cache

WORDS, ENTRIES, POSITIONS = 1000, 8, 2
_UNIT_POSITIONS = 4096
_OPENINGS = 5
_WHAT: dict[str, tuple[str, Unit]] = {
    "rows": ("reading, checking and indexing rows of text", "s"),
    "plan": ("planning the units of a cache", "s"),
    "index": ("opening a cache for the first time", "s"),
    "open": ("opening a cache", "s"),
    "status": ("the status of a cache", "s"),
    "memory": ("peak memory of all these", "MB"),
}


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    sizes, turns = ((50, 500, 5000), 1) if quick else ((2000, 20_000, 200_000), 3)
    found: list[list[dict[str, float]]] = []
    for _ in range(turns):
        found.append([measured(["benchmarks.suite.growth", size]) for size in sizes])
    outcomes: list[Outcome] = []
    for name, (what, unit) in _WHAT.items():
        kind = "memory" if unit == "MB" else "time"
        figures = [[each[name] for each in turn] for turn in found]
        title = "growth.memory.all" if name == "memory" else f"growth.{kind}.{name}"
        outcomes.append(growth(title, what, sizes, figures, unit))
    return outcomes


def measure(size: int, directory: Path) -> dict[str, float]:
    """Seconds of each step at one size, and the peak of memory in MB above what was in use before."""
    rows = directory / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for number in range(size):
            asked = {"role": "user", "content": f"What stands beside table number {number}?"}
            answer = {"role": "assistant", "content": f"Plate {number}."}
            file.write(json.dumps({"id": f"s{number}", "messages": [asked, answer]}) + "\n")
    place = directory / "cache.zarr"
    before = peak_mb()
    figures: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        work()
        figures[name] = time.perf_counter() - begin

    timed("rows", lambda: SampleIndex.build([DataSource(files=(rows,), root=directory)], lambda _: POSITIONS))
    writer = create_cache(
        place,
        {"top_k": ENTRIES, "temperatures": list(NODES), "vocabulary_size": WORDS, "shared_ids": [[0, WORDS]]},
    )
    timed("plan", lambda: writer.plan(_planned(size), unit_positions=_UNIT_POSITIONS))
    targets = _targets()
    for unit in writer.pending():
        with writer.unit(unit) as out:
            for key in unit.keys:
                out.append(SampleTargets(key=key, hard=True, targets=targets))
    timed("index", lambda: open_cache(place))
    timed("open", lambda: [open_cache(place) for _ in range(_OPENINGS)])
    figures["open"] /= _OPENINGS
    timed("status", lambda: cache_status(place))
    return {**figures, "memory": peak_mb() - before}


def _planned(size: int) -> Iterator[PlannedSample]:
    for number in range(size):
        yield PlannedSample(hashlib.sha256(b"%d" % number).hexdigest(), POSITIONS)


def _targets() -> Targets:
    """Targets, the same for every sample."""
    log_p = np.log(np.full((POSITIONS, ENTRIES), 0.1, dtype=np.float32))
    tail = np.tile([np.log(0.2 / 100) / T + np.log(100) for T in NODES], (POSITIONS, 1))
    ids = np.tile(np.arange(ENTRIES, dtype=np.uint32), (POSITIONS, 1))
    return Targets(
        ids=ids,
        logprobs=log_p,
        tail=tail.astype(np.float32),
        target_ids=ids[:, 0].copy(),
        target_logprobs=log_p[:, 0].copy(),
        soft=np.ones(POSITIONS, dtype=np.bool_),
    )


@click.command()
@click.argument("size", type=click.IntRange(min=1))
def main(size: int) -> None:
    """Measure one size in this process.

    Example: python -m benchmarks.suite.growth 2000
    """
    with tempfile.TemporaryDirectory() as directory:
        click.echo(json.dumps(measure(size, Path(directory))))


if __name__ == "__main__":
    main()
