"""How fast a model answers, from files to text: one at a time, in batches, and for several users at once.

    watch = Stopwatch(answer, samples, Timing(), max_new_tokens=128)
    watch.latencies, watch.throughput_runs(), watch.concurrency()

Every measurement follows an untimed batch of the same size.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firstsight.data.samples import Sample

Answer = Callable[[Sequence[Sample], int], object]

_WARM_UP_TOKENS = 2
"""Longest answer of the untimed batches before a batch size is timed: the shapes of the prompt are what takes the time."""
_WORTH = 1.05
"""A larger batch must answer this much faster, or no larger ones are tried."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is timed."""

    timed: int = 16
    """Answers timed at batch 1."""
    warm_up: int = 2
    """Untimed answers before them."""
    repetitions: int = 1
    """Of the answers at batch 1; a sample's time is the median of its repetitions."""
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    """Tried beyond 1, in this order, as long as they gain; each over `requests` answers, whole batches."""
    users: tuple[int, ...] = (1, 4, 10)
    requests: int = 20
    """Answers per batch size and per number of users, rounded up to whole batches."""


class Stopwatch:
    """Times one model; a batch size that was timed once is not timed again.

    Args:
        answer: answers a batch of samples with at most so many tokens each.
        samples: to ask, from the first on, over and over.
        timing: what is timed.
        max_new_tokens: longest answer.
    """

    def __init__(self, answer: Answer, samples: Sequence[Sample], timing: Timing, max_new_tokens: int) -> None:
        self.answer = answer
        self.samples = samples
        self.timing = timing
        self.max_new_tokens = max_new_tokens
        self.latencies = self._latencies()
        """Seconds of each of the first `timed` samples at batch 1."""
        self._by_size: dict[int, list[float] | None] = {1: self.latencies}

    def throughput_runs(self) -> list[dict[str, Any]]:
        """`{"batch", "samples", "seconds"}` per batch size that was tried, 1 first.

        A batch that does not fit into the device's memory ends the search.
        """
        runs: list[dict[str, Any]] = []
        for size in (1, *self.timing.batch_sizes):
            seconds = None if size > len(self.samples) else self._batches(size)
            if seconds is None:
                break
            runs.append({"batch": size, "samples": size * len(seconds), "seconds": math.fsum(seconds)})
            *before, last = (run["samples"] / run["seconds"] for run in runs)
            if last < _WORTH * max(before, default=0.0):
                break
        return runs

    def concurrency(self) -> dict[str, dict[str, Any]]:
        """What users see who each ask again as soon as they are answered.

        The server answers all waiting requests as one batch and takes the next when it is done, so every request lasts as long
        as its batch: no joining a batch under way, and no thinking time of the users.

        Returns:
            By number of users: samples_per_second, p50 and p95 of a request in seconds, and `seconds` of every request; null
            and empty where the batch did not fit into the device's memory.
        """
        return {str(users): _seen_by_users(users, self._batches(users)) for users in self.timing.users}

    def _latencies(self) -> list[float]:
        timed = self.samples[: self.timing.timed]
        for sample in timed[: self.timing.warm_up]:
            self.answer([sample], self.max_new_tokens)
        rounds = [[self._seconds([sample]) for sample in timed] for _ in range(self.timing.repetitions)]
        return [float(np.median(of_sample)) for of_sample in zip(*rounds, strict=True)]

    def _batches(self, size: int) -> list[float] | None:
        """Seconds of each batch; None where one does not fit into the device's memory."""
        import torch  # not above: the arithmetic below needs none of it

        if size not in self._by_size:
            stream = itertools.cycle(self.samples)
            batches = [list(itertools.islice(stream, size)) for _ in range(-(-self.timing.requests // size))]
            try:
                self.answer(batches[0], _WARM_UP_TOKENS)
                self._by_size[size] = [self._seconds(batch) for batch in batches]
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self._by_size[size] = None
        return self._by_size[size]

    def _seconds(self, batch: Sequence[Sample]) -> float:
        begin = time.perf_counter()
        self.answer(batch, self.max_new_tokens)
        return time.perf_counter() - begin


def throughput(runs: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Samples per second by batch size, and the best of them."""
    rates = {int(run["batch"]): run["samples"] / run["seconds"] for run in runs}
    best = max(rates, key=lambda batch: rates[batch])
    return {**{str(batch): rate for batch, rate in rates.items()}, "best_batch": best, "best": rates[best]}


def _seen_by_users(users: int, batches: Sequence[float] | None) -> dict[str, Any]:
    if batches is None:
        return {"samples_per_second": None, "p50": None, "p95": None, "seconds": []}
    seconds = [duration for duration in batches for _ in range(users)]
    p50, p95 = np.percentile(seconds, [50, 95])
    return {
        "samples_per_second": len(seconds) / math.fsum(batches),
        "p50": float(p50),
        "p95": float(p95),
        "seconds": seconds,
    }
