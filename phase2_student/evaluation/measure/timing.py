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

import numpy as np

from firstsight.data.samples import Sample
from firstsight.errors import RecipeError
from phase2_student.evaluation.results import Concurrency, Throughput, ThroughputRun

Answer = Callable[[Sequence[Sample], int], object]

_WARM_UP_TOKENS = 2
"""Maximum length of answers in the untimed batch before each batch size: only the first run with a prompt's shapes is slow."""
_WORTH = 1.05
"""How much faster a larger batch must be; if it is not, no larger ones are tried."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is timed."""

    timed: int = 16
    """Number of answers timed at batch 1; 0: nothing is timed, batches and users neither."""
    warm_up: int = 2
    """Number of untimed answers before these."""
    repetitions: int = 1
    """How often each answer at batch 1 is timed; a sample's time is the median of its repetitions."""
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    """Batch sizes tried after 1, in this order, as long as they are faster; each is timed over `requests` answers, in whole batches."""
    users: tuple[int, ...] = (1, 4, 10)
    """Numbers of users who ask at the same time; each is timed."""
    requests: int = 20
    """Number of answers per batch size and per number of users, rounded up to whole batches."""

    def __post_init__(self) -> None:
        """Raise RecipeError if a number is not possible."""
        check_counts(0, timed=self.timed, warm_up=self.warm_up)
        check_counts(1, repetitions=self.repetitions, requests=self.requests)
        for name, numbers in {"batch_sizes": self.batch_sizes, "users": self.users}.items():
            for number in numbers:
                check_counts(1, **{name: number})


def check_counts(least: int, **counts: object) -> None:
    """Check numbers that a caller in Python gave, by the names of the arguments; the commands check their own.

    Raises:
        RecipeError: one is not a whole number, or is below the least possible one.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecipeError(f"{name}: expected a whole number of at least {least}, got {value!r}")


class Stopwatch:
    """Times one model; a batch size that was timed once is not timed again.

    Args:
        answer: answers a batch of samples, with at most the given number of tokens each.
        samples: the samples to ask; begins again with the first when all were asked.
        timing: what is timed.
        max_new_tokens: maximum length of an answer.
    """

    def __init__(self, answer: Answer, samples: Sequence[Sample], timing: Timing, max_new_tokens: int) -> None:
        self.answer = answer
        self.samples = samples
        self.timing = timing
        self.max_new_tokens = max_new_tokens
        self.latencies = self._latencies()
        """Seconds of each of the first `timed` samples at batch 1."""
        self._by_size: dict[int, list[float] | None] = {1: self.latencies}

    def throughput_runs(self) -> list[ThroughputRun]:
        """One result per batch size that was tried, 1 first; a batch that does not fit into the device's memory ends the search."""
        if not self.latencies:
            return []
        runs: list[ThroughputRun] = []
        for size in (1, *self.timing.batch_sizes):
            seconds = None if size > len(self.samples) else self._batches(size)
            if seconds is None:
                break
            runs.append(ThroughputRun(batch=size, samples=size * len(seconds), seconds=math.fsum(seconds)))
            *before, last = (run.samples / run.seconds for run in runs)
            if last < _WORTH * max(before, default=0.0):
                break
        return runs

    def concurrency(self) -> dict[str, Concurrency]:
        """Times of requests, by number of users; each user asks again as soon as the answer has come.

        The server answers all waiting requests as one batch, then takes the next batch. No request joins a running batch and
        users do not pause, so a request takes as long as its batch.
        """
        if not self.latencies:
            return {}
        return {str(users): seen_by_users(users, self._batches(users)) for users in self.timing.users}

    def _latencies(self) -> list[float]:
        timed = self.samples[: self.timing.timed]
        for sample in timed[: self.timing.warm_up]:
            self.answer([sample], self.max_new_tokens)
        rounds = [[self._seconds([sample]) for sample in timed] for _ in range(self.timing.repetitions)]
        return [float(np.median(seconds)) for seconds in zip(*rounds, strict=True)]

    def _batches(self, size: int) -> list[float] | None:
        """Seconds of each batch; None if one does not fit into the device's memory."""
        import torch  # not at the top: the arithmetic below does not need it

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


def throughput(runs: Sequence[ThroughputRun]) -> Throughput | None:
    """Samples per second by batch size, and the best of them; None without runs."""
    if not runs:
        return None
    rates = {run.batch: run.samples / run.seconds for run in runs}
    best = max(rates, key=lambda batch: rates[batch])
    return Throughput(rates=rates, best_batch=best, best=rates[best])


def seen_by_users(users: int, batches: Sequence[float] | None) -> Concurrency:
    """Times of requests that are answered in batches, as users see them.

    Args:
        users: number of requests in each batch.
        batches: seconds of each batch; None if a batch did not fit into the device's memory.
    """
    if batches is None:
        return Concurrency(samples_per_second=None, p50=None, p95=None, seconds=[])
    seconds = [duration for duration in batches for _ in range(users)]
    p50, p95 = np.percentile(seconds, [50, 95])
    return Concurrency(
        samples_per_second=len(seconds) / math.fsum(batches), p50=float(p50), p95=float(p95), seconds=seconds
    )
