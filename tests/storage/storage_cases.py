"""Samples with known targets, for the tests of the cache; also run as a writing process by the crash tests."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.format.v1.arrays import TAIL_ORIGIN, TAIL_STEP, VALUE_STEP
from storage.format.v1.values import TAIL_EMPTY
from storage.plan import PlannedSample
from storage.reader import Cache
from storage.targets import SampleTargets, Targets
from storage.writer import CacheWriter, create_cache

NODES = (1.0, 1.5, 2.0, 4.0)
LONG = os.environ.get("FIRSTSIGHT_FAULTS") == "long"


def spec_of(vocabulary_size: int = 500, top_k: int = 8, nodes: Sequence[float] = NODES, **more: Any) -> dict[str, Any]:
    return {
        "top_k": top_k,
        "temperatures": list(nodes),
        "vocabulary_size": vocabulary_size,
        "shared_ids": [[0, vocabulary_size]],
        "teacher": {"name": "teacher", "dtype": "float32"},
        **more,
    }


def key_of(number: int) -> str:
    return hashlib.sha256(f"sample {number}".encode()).hexdigest()


def sample_of(
    number: int, positions: int = 10, *, spec: dict[str, Any] | None = None, soft_share: float = 1.0, hard: bool = True
) -> SampleTargets:
    """A sample from exact arithmetic over a whole random distribution."""
    spec = spec or spec_of()
    size, top_k = spec["vocabulary_size"], spec["top_k"]
    generator = np.random.default_rng(number)
    logits = generator.normal(scale=3, size=(positions, size)) - np.log(np.arange(size) + 1.0)
    values = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = generator.integers(0, size, positions)
    top = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
    absent = ~(top == target[:, None]).any(axis=1)
    top[absent, -1] = target[absent]
    stored = np.take_along_axis(values, top, axis=1)
    order = np.argsort(-stored, axis=1, kind="stable")
    top, stored = np.take_along_axis(top, order, axis=1), np.take_along_axis(stored, order, axis=1)
    rest = values.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    with np.errstate(divide="ignore"):
        tail = np.stack([np.log(np.exp(rest / node).sum(axis=1)) for node in spec["temperatures"]], axis=1)
    return SampleTargets(
        key=key_of(number),
        hard=hard,
        targets=Targets(
            ids=top.astype(np.uint32),
            logprobs=stored.astype(np.float32),
            tail=tail.astype(np.float32),
            target_ids=target.astype(np.uint32),
            target_logprobs=values[np.arange(positions), target].astype(np.float32),
            soft=generator.random(positions) < soft_share,
        ),
    )


def write_unit(writer: CacheWriter, unit: Any, samples: dict[str, SampleTargets]) -> bool | None:
    """Commit a unit from a table of samples; what is not in the table is skipped."""
    with writer.unit(unit) as out:
        for key in unit.keys:
            if key in samples:
                out.append(samples[key])
            else:
                out.skip(key, "no answer position")
        out.statistics["positions"] = sum(len(samples[key].targets) for key in unit.keys if key in samples)
    return out.won


def write_cache(
    location: str | Path,
    samples: Iterable[SampleTargets],
    *,
    unit_positions: int = 40,
    spec: dict[str, Any] | None = None,
) -> CacheWriter:
    table = {sample.key: sample for sample in samples}
    writer = create_cache(location, spec or spec_of())
    planned = [PlannedSample(key, len(sample.targets)) for key, sample in table.items()]
    writer.plan(planned, unit_positions=unit_positions)
    for unit in writer.pending():
        write_unit(writer, unit, table)
    return writer


def assert_stored(given: SampleTargets, found: SampleTargets) -> None:
    """The found targets are the given ones within the error bounds that the format states."""
    assert found.key == given.key
    assert found.hard == given.hard
    for name, array in vars(given.targets).items():
        assert getattr(found.targets, name).dtype == array.dtype
        assert getattr(found.targets, name).shape == array.shape
    soft = given.targets.soft
    np.testing.assert_array_equal(found.targets.soft, soft)
    np.testing.assert_array_equal(found.targets.target_ids, given.targets.target_ids)
    np.testing.assert_array_equal(found.targets.ids[soft], given.targets.ids[soft])
    logprobs = np.minimum(given.targets.logprobs[soft], 0)
    ulp = 2e-7 * np.abs(logprobs)
    assert (np.abs(found.targets.logprobs[soft] - logprobs) <= VALUE_STEP / 2 + 1e-6 + ulp).all()
    assert (np.diff(found.targets.logprobs, axis=1) <= 0).all()
    tail = given.targets.tail[soft]
    empty = np.isneginf(tail)
    np.testing.assert_array_equal(np.isneginf(found.targets.tail[soft]), empty)
    error = np.abs(
        found.targets.tail[soft][~empty] - np.maximum(tail[~empty], TAIL_ORIGIN - (TAIL_EMPTY - 1) * TAIL_STEP)
    )
    assert (error <= TAIL_STEP / 2 + 1e-5).all()
    own = given.targets.target_logprobs[soft]
    assert (np.abs(found.targets.target_logprobs[soft] - own) <= np.abs(own) * 2**-11 + 6e-8).all()
    for name in ("ids", "logprobs", "tail", "target_logprobs"):
        assert not getattr(found.targets, name)[~soft].any()


def assert_holds(cache: Cache, samples: Iterable[SampleTargets]) -> None:
    """The cache holds exactly these samples."""
    table = {sample.key: sample for sample in samples}
    assert set(cache.keys()) == set(table)
    assert len(cache) == len(table)
    for key, sample in table.items():
        assert_stored(sample, cache[key])


def main() -> None:
    """Write what is pending of samples 0 to N - 1: `python storage_cases.py CACHE N`."""
    location, count = sys.argv[1], int(sys.argv[2])
    samples = {sample.key: sample for sample in (sample_of(number) for number in range(count))}
    writer = create_cache(location, spec_of())
    writer.plan([PlannedSample(key, 10) for key in samples], unit_positions=40)
    for unit in writer.pending():
        if not writer.is_committed(unit.name):
            write_unit(writer, unit, samples)


if __name__ == "__main__":
    main()
