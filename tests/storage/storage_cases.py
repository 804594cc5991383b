"""Samples with known targets, for the tests of the cache; also run as a writing process by the crash tests."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import WrongTargets
from storage.exact import open_exact_cache
from storage.format.v1.arrays import TAIL_ORIGIN, TAIL_STEP, VALUE_STEP
from storage.format.v1.values import TAIL_EMPTY
from storage.head.content import HeadContent, pack_tokens
from storage.plan import PlannedSample
from storage.reader import CommittedCache, open_cache
from storage.targets import ExactSample, ExactTargets, SampleTargets, ShapedTargets, Targets, Turn
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


def spec_of_kind(kind: str, **more: Any) -> dict[str, Any]:
    """The specification of a small cache: v1, v2 (kind top_k), tail (top_k with a tail rank), exact."""
    if kind == "v1":
        return spec_of(format_version=1, **more)
    if kind in ("v2", "tail"):
        tail: dict[str, Any] = {"tail_rank": 3, "hidden_size": 12} if kind == "tail" else {}
        return spec_of(turns="all", **tail, **more)
    return {
        "targets": "exact",
        "turns": "all",
        "hidden_size": 12,
        "state_dtype": "bfloat16",
        "head": {"rows": 40, "dtype": "bfloat16", "bias": True},
        "teacher": {"name": "teacher", "dtype": "bfloat16"},
        **more,
    }


KINDS = ("v1", "v2", "tail", "exact")


def kind_of(spec: dict[str, Any]) -> str:
    if spec.get("targets") == "exact":
        return "exact"
    return "tail" if "tail_rank" in spec else f"v{spec.get('format_version', 2)}"


def bits_of(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Any:
    """The bits of finite random numbers."""
    values = generator.normal(size=shape).astype(np.float32)
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    return values.view(np.uint32) if dtype == "float32" else (values.view(np.uint32) >> 16).astype(np.uint16)


def head_of(spec: dict[str, Any], seed: int = 0) -> HeadContent:
    """The head of a cache of this specification, the same for the same seed."""
    generator = np.random.default_rng(seed)
    width = spec["hidden_size"]
    if "tail_rank" in spec:
        rank, rows = spec["tail_rank"], spec["vocabulary_size"]
        arrays: dict[str, Any] = {
            "image": generator.normal(size=(rows, rank)).astype(np.float16),
            "mean": generator.normal(size=rows).astype(np.float32),
            "scale": np.full(rank, 0.25, np.float32),
            "basis": generator.normal(size=(rank, width)).astype(np.float32),
            "center": generator.normal(size=width).astype(np.float32),
        }
        return HeadContent(arrays=arrays, softcap=30.0)
    head = spec["head"]
    tokens = {
        number: (b"t" * (number % 4) + b"%d" % number, (number > 35) + (number > 38))
        for number in range(head["rows"])
        if number != 7
    }
    arrays = {"weight": bits_of(generator, head["dtype"], (head["rows"], width)), **pack_tokens(tokens, head["rows"])}
    if head["bias"]:
        arrays["bias"] = bits_of(generator, head["dtype"], (head["rows"],))
    return HeadContent(arrays=arrays, scale=0.5)


def turns_for(number: int, positions: int) -> tuple[Turn, ...]:
    """Every third sample has several turns, the last of them the teacher's own answer."""
    if number % 3 != 1 or positions < 3:
        return ()
    return (Turn(positions - 2, True), Turn(1, True), Turn(1, False))


def sample_of_kind(kind: str, number: int, positions: int = 10, *, spec: dict[str, Any] | None = None) -> Any:
    """A sample for a cache of that kind."""
    spec = spec or spec_of_kind(kind)
    generator = np.random.default_rng(number)
    if kind == "exact":
        targets = ExactTargets(
            target_ids=generator.integers(0, spec["head"]["rows"], positions).astype(np.uint32),
            states=bits_of(generator, spec["state_dtype"], (positions, spec["hidden_size"])),
        )
        turns = turns_for(number, positions)
        return ExactSample(key=key_of(number), hard=not turns, targets=targets, turns=turns)
    sample = sample_of(number, positions, spec=spec, soft_share=0.8)
    if kind == "tail":
        values = generator.integers(-127, 128, (positions, spec["tail_rank"])).astype(np.float32)
        sample = replace(sample, targets=ShapedTargets(**vars(sample.targets), tail_coefficients=values))
    turns = () if kind == "v1" else turns_for(number, positions)
    return replace(sample, turns=turns, hard=not turns)


def open_kind(location: Any, **more: Any) -> Any:
    """The cache, of whatever kind."""
    try:
        return open_cache(location, **more)
    except WrongTargets:
        return open_exact_cache(location, **more)


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


def write_unit(writer: CacheWriter, unit: Any, samples: dict[str, Any]) -> bool | None:
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
    samples: Iterable[Any],
    *,
    unit_positions: int = 40,
    spec: dict[str, Any] | None = None,
) -> CacheWriter:
    table = {sample.key: sample for sample in samples}
    writer = create_cache(location, spec or spec_of())
    if writer.version.head is not None:
        writer.write_head(head_of(writer.spec))
    planned = [PlannedSample(key, len(sample.targets)) for key, sample in table.items()]
    writer.plan(planned, unit_positions=unit_positions)
    for unit in writer.pending():
        write_unit(writer, unit, table)
    return writer


def assert_stored(given: Any, found: Any) -> None:
    """The found targets are the given ones within the error bounds that the format states."""
    assert found.key == given.key
    assert found.hard == given.hard
    assert found.turns == given.turns
    if isinstance(given, ExactSample):
        for name, array in vars(given.targets).items():
            assert getattr(found.targets, name).dtype == array.dtype
            np.testing.assert_array_equal(getattr(found.targets, name), array)
        return
    if isinstance(given.targets, ShapedTargets):
        expected = np.where(given.targets.soft[:, None], given.targets.tail_coefficients, 0)
        np.testing.assert_array_equal(found.targets.tail_coefficients, expected)
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


def assert_holds(cache: CommittedCache[Any], samples: Iterable[Any]) -> None:
    """The cache holds exactly these samples."""
    table = {sample.key: sample for sample in samples}
    assert set(cache.keys()) == set(table)
    assert len(cache) == len(table)
    for key, sample in table.items():
        assert_stored(sample, cache[key])


def main() -> None:
    """Write what is pending of samples 0 to N - 1: `python storage_cases.py CACHE N [KIND]`."""
    location, count, kind = sys.argv[1], int(sys.argv[2]), (*sys.argv[3:], "v1")[0]
    samples = {sample.key: sample for sample in (sample_of_kind(kind, number) for number in range(count))}
    writer = create_cache(location, spec_of_kind(kind) if sys.argv[3:] else spec_of())
    if writer.version.head is not None:
        writer.write_head(head_of(writer.spec))
    writer.plan([PlannedSample(key, 10) for key in samples], unit_positions=40)
    for unit in writer.pending():
        if not writer.is_committed(unit.name):
            write_unit(writer, unit, samples)


if __name__ == "__main__":
    main()
