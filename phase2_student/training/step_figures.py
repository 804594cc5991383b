"""The figures of each training step, from which logs and epochs take their means.

A log may span the end of an epoch, and an epoch many logs; both are means over exactly their own steps, and each step counts
once. The host waits for the device when something is logged, an epoch ends or a checkpoint is saved, not in every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from phase2_student.loss.objective import LossTerms, Objective

_STEP = ("loss", "kd", "ce", "agreement", "grad_norm")


@dataclass(kw_only=True)
class Sums:
    """Sums over steps."""

    steps: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """How many steps have each figure: a step without soft targets has no agreement."""
    tokens: float = 0.0
    """Tokens of this process."""
    seconds: float = 0.0
    """Time of training, without validation."""
    waited: float = 0.0
    """Seconds in which the loop waited for data."""

    def add(self, figures: dict[str, float]) -> None:
        """Add one step."""
        self.steps += 1
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, processes: int) -> dict[str, float]:
        """The means by name, with tokens per second of all processes and the share of the time that the loop waited for data."""
        found = {name: self.totals[name] / self.counts[name] for name in _STEP if name in self.totals}
        if self.seconds > 0:
            found["tokens_per_second"] = self.tokens * processes / self.seconds
            found["data_wait"] = self.waited / self.seconds
        return found


class StepFigures:
    """Collects the micro-batches of each step, and gives sums over the steps since the last log and over those of an epoch.

    Args:
        objective: the run's objective.
        reduced: sums a tensor over all processes.
    """

    def __init__(self, objective: Objective, reduced: Callable[[Tensor], Tensor]) -> None:
        self._objective = objective
        self._reduced = reduced
        self._micro: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._norms: list[float | None] = []
        self.window, self.epoch = Sums(), Sums()
        """Sums since the last log; and since the epoch began, including what a checkpoint recorded of it."""
        self._waited, self._since = 0.0, time.perf_counter()

    def add(self, terms: LossTerms, tokens: Tensor) -> None:
        """Add a micro-batch: the sums of its loss, and its tokens; both stay on the device."""
        self._micro.append(torch.stack(list(terms)))
        self._tokens.append(tokens)

    def end_step(self, norm: float | None) -> None:
        """Close a step after all its micro-batches were added, with the norm of its gradient."""
        self._steps.append(torch.stack(self._micro).sum(dim=0))
        self._norms.append(norm)
        self._micro = []

    def waited(self, seconds: float) -> None:
        """Count time in which the loop waited for data."""
        self._waited += seconds

    def leave_out(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._since += seconds

    def settle(self) -> None:
        """Bring both sums up to date; every process must call this at the same step."""
        now = time.perf_counter()
        tokens = float(torch.stack(self._tokens).sum()) if self._tokens else 0.0
        for sums in (self.window, self.epoch):
            sums.tokens += tokens
            sums.seconds += now - self._since
            sums.waited += self._waited
        if self._steps:
            table = self._reduced(torch.stack(self._steps).cpu().double())
            for row, norm in zip(table, self._norms, strict=True):
                figures = self._figures(LossTerms(*row), norm)
                self.window.add(figures)
                self.epoch.add(figures)
        self._steps, self._norms, self._tokens = [], [], []
        self._waited, self._since = 0.0, now

    def end_window(self) -> Sums:
        """The figures since the last log; begins the next log."""
        self.settle()
        window, self.window = self.window, Sums()
        return window

    def end_epoch(self) -> Sums:
        """The figures of the epoch; begins the next epoch."""
        self.settle()
        epoch, self.epoch = self.epoch, Sums()
        return epoch

    def _figures(self, terms: LossTerms, norm: float | None) -> dict[str, float]:
        means = self._objective.means(terms, training=True)
        return means if norm is None or not math.isfinite(norm) else {**means, "grad_norm": norm}
