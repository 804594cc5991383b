"""Samples are prepared ahead of the device, and its idle time is counted."""

import threading
import time

import pytest
import torch

from phase1_teacher.forward.device_clock import DeviceClock
from phase1_teacher.forward.prefetch import Prefetch


def test_prefetch_keeps_order_and_raises_the_sources_error_in_its_place():
    def source():
        yield from range(5)
        raise ValueError("bad row")

    ahead = iter(Prefetch(source(), 2))
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="bad row"):
        next(ahead)


def test_prefetch_ends_its_thread_when_the_consumer_leaves():
    before = threading.active_count()
    ahead = Prefetch(iter(range(1000)), 2)
    assert next(iter(ahead)) == 0
    ahead.close()
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(5)
    assert threading.active_count() <= before


def test_the_idle_share_is_the_time_between_busy_blocks():
    clock = DeviceClock(torch.device("cpu"))
    assert clock.idle_share() == 0
    with clock.busy():
        time.sleep(0.02)
    time.sleep(0.06)
    with clock.busy():
        time.sleep(0.02)
    assert 0 < clock.idle_share() < 1
