"""Random sequences of everything one can do to a cache, against a dict."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storage_cases import assert_stored, key_of, sample_of, spec_of

from storage.errors import MissingSample, SkippedSample
from storage.index import INDEX, INDEX_NAME
from storage.maintenance.gc import collect_garbage
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.reader import Cache, open_cache
from storage.writer import CacheWriter, create_cache

SAMPLES = {number: sample_of(number, number % 4, soft_share=0.8, hard=number % 3 > 0) for number in range(30)}
NUMBERS = {sample.key: number for number, sample in SAMPLES.items()}


class CacheMachine(RuleBasedStateMachine):
    """A cache and a model of it: what is planned, stored and skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.location = self.directory / "cache"
        self.planned: list[int] = []
        self.stored: set[int] = set()
        self.skipped: set[int] = set()
        self.reader: Cache | None = None
        self.seen: tuple[set[int], set[int]] = (set(), set())

    @initialize()
    def create(self) -> None:
        self.writer: CacheWriter = create_cache(self.location, spec_of())

    @rule(numbers=st.lists(st.integers(0, 29), max_size=8), size=st.integers(1, 6))
    def plan(self, numbers, size) -> None:
        new = [number for number in dict.fromkeys(numbers) if number not in self.planned]
        samples = [PlannedSample(key_of(number), number % 4) for number in numbers]
        assert self.writer.plan(samples, unit_positions=size) == len(new)
        self.planned += new

    @precondition(lambda self: self.writer.pending())
    @rule(data=st.data(), skip=st.integers(0, 3), fail=st.booleans())
    def commit(self, data, skip, fail) -> None:
        unit = data.draw(st.sampled_from(self.writer.pending()))
        if fail:
            with pytest.raises(ZeroDivisionError), self.writer.unit(unit) as out:  # noqa: PT012
                out.skip(unit.keys[0], "gone with the exception")
                raise ZeroDivisionError
            return
        with self.writer.unit(unit) as out:
            for number in map(NUMBERS.__getitem__, unit.keys):
                if skip and number % 4 == skip:
                    out.skip(key_of(number), f"reason {number}")
                    self.skipped.add(number)
                else:
                    out.append(SAMPLES[number])
                    self.stored.add(number)
        assert out.won

    @rule()
    def reopen_writer(self) -> None:
        self.writer = create_cache(self.location, spec_of())

    @rule(budget=st.sampled_from([0, 1500, 10**8]), scratch=st.booleans())
    def open(self, budget, scratch) -> None:
        directory = self.directory / "scratch" if scratch else None
        self.reader = open_cache(self.location, memory_budget=budget, scratch=directory)
        self.seen = (set(self.stored), set(self.skipped))

    @precondition(lambda self: self.reader is not None)
    @rule(number=st.integers(0, 29))
    def look_up(self, number) -> None:
        assert self.reader is not None
        stored, skipped = self.seen
        assert (key_of(number) in self.reader) == (number in stored)
        if number in stored:
            assert_stored(SAMPLES[number], self.reader[key_of(number)])
        else:
            with pytest.raises(SkippedSample if number in skipped else MissingSample):
                self.reader[key_of(number)]

    @rule()
    def delete_index(self) -> None:
        (self.location / INDEX / INDEX_NAME).unlink(missing_ok=True)

    @rule(later=st.sampled_from([0, 8 * 86400]))
    def collect(self, later) -> None:
        assert collect_garbage(self.location, now=time.time() + later).removed == []

    @precondition(lambda self: self.stored or self.skipped)
    @rule(data=st.data())
    def lose_a_manifest_and_dump_again(self, data) -> None:
        unit = data.draw(st.sampled_from([u for u in self.writer.units() if self.writer.is_committed(u.name)]))
        (self.location / "manifests" / f"{unit.name}.json").unlink()
        assert unit.name in verify_cache(self.location).missing
        with self.writer.unit(unit) as out:
            for number in map(NUMBERS.__getitem__, unit.keys):
                out.append(SAMPLES[number])
        numbers = {NUMBERS[key] for key in unit.keys}
        self.stored |= numbers
        self.skipped -= numbers
        self.reader = None
        assert len(collect_garbage(self.location).removed) == 1

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "writer"):
            return
        status = cache_status(self.location)
        assert status.planned_samples == len(self.planned)
        assert status.samples == len(self.stored)
        assert len(status.skipped) == len(self.skipped)
        assert status.positions == sum(number % 4 for number in self.stored)

    def teardown(self) -> None:
        report = verify_cache(self.location)
        assert not report.problems
        cache = open_cache(self.location)
        assert {NUMBERS[key] for key in cache} == self.stored
        assert {NUMBERS[key] for key in cache.skipped()} == self.skipped
        shutil.rmtree(self.directory)


CacheMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestCache = CacheMachine.TestCase
