"""How fast a dump is, from its commits."""

import pytest

from storage.maintenance.rate import Commit, dump_rate


def commits(*pairs, samples=100, seconds=60.0):
    return [Commit(time=1000.0 + moment, samples=samples, seconds=seconds) for moment in pairs]


def test_one_worker():
    rate = dump_rate(commits(60, 120, 180), 400, now=1200.0)
    assert rate.samples_per_second == pytest.approx(300 / 180)
    assert rate.workers == 1
    assert rate.seconds_left == pytest.approx(400 / (300 / 180))
    assert rate.since_commit == pytest.approx(20)


def test_one_commit_is_enough():
    rate = dump_rate(commits(60), 100, now=1065.0)
    assert (rate.samples_per_second, rate.workers) == (pytest.approx(100 / 60), 1)


def test_eight_workers_in_step():
    rate = dump_rate(commits(*[60] * 8, *[120] * 8), 1600, now=1121.0)
    assert rate.samples_per_second == pytest.approx(1600 / 120)
    assert rate.workers == 8
    assert rate.seconds_left == pytest.approx(120)


def test_only_living_workers_count():
    """Yesterday's were faster; and a unit that is overdue slows the rate down."""
    old = commits(*range(0, 600, 10), seconds=10.0)
    new = [Commit(time=90_000.0 + moment, samples=100, seconds=50.0) for moment in (50, 100)]
    rate = dump_rate([*old, *new], 100, now=90_110.0)
    assert rate.samples_per_second == pytest.approx(2)
    assert dump_rate([*old, *new], 100, now=90_210.0).samples_per_second == pytest.approx(200 / (100 + 110 - 10))
    silent = dump_rate([*old, *new], 100, now=90_100.0 + 601)
    assert (silent.samples_per_second, silent.workers, silent.seconds_left) == (None, 0, None)
    assert silent.since_commit == pytest.approx(601)


def test_units_that_take_long_are_waited_for():
    slow = commits(3600, seconds=3600.0)
    assert dump_rate(slow, 10, now=1000.0 + 3600 + 1800).workers == 1
    assert dump_rate(slow, 10, now=1000.0 + 3600 + 4 * 3600).workers == 0


def test_a_cache_that_does_not_tell_of_seconds():
    unknown = [Commit(time=1000.0 + moment, samples=100, seconds=None) for moment in (0, 50, 100)]
    rate = dump_rate(unknown, 100, now=1100.0)
    assert (rate.samples_per_second, rate.workers) == (pytest.approx(2), 1)
    assert dump_rate(unknown[:1], 100, now=1001.0).samples_per_second is None
    assert dump_rate([], 100, now=0.0) is None


def test_a_clock_that_is_behind():
    rate = dump_rate(commits(60), 100, now=900.0)
    assert rate.since_commit == 0
    assert rate.samples_per_second > 0
