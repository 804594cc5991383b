"""How long the device computes and how long it waits: the idle share that a dump reports."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DeviceClock:
    """Adds up the time within `busy` blocks: by CUDA events on a GPU, by the wall clock on a CPU.

    Args:
        device: the model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._device = device
        self._begin: float | None = None
        self._end = 0.0
        self._seconds = 0.0
        self._open: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count what is started within the block as work of the device."""
        begin = time.perf_counter()
        self._begin = begin if self._begin is None else self._begin
        first = self.event()
        try:
            yield
        finally:
            self._end = time.perf_counter()
            if first is None:
                self._seconds += self._end - begin
            else:
                self._open.append((first, self.event()))
                self._settle()

    def event(self) -> Any:
        """A CUDA event recorded after everything started so far; None on a CPU."""
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def idle_share(self) -> float:
        """Share of the time between the first and the last block in which the device was idle, 0 to 1."""
        if self._begin is None:
            return 0.0
        if self.cuda:
            torch.cuda.synchronize(self._device)
            self._settle()
            self._end = max(self._end, self._begin + self._seconds)
        return max(0.0, 1 - self._seconds / max(self._end - self._begin, 1e-9))

    def _settle(self) -> None:
        while self._open and self._open[0][1].query():
            first, last = self._open.popleft()
            self._seconds += first.elapsed_time(last) / 1e3
