"""What the writer demands of the targets of a sample, before anything is encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.layout import Layout
from storage.format.v1.arrays import TAIL_ORIGIN, VALUE_STEP
from storage.format.v1.values import MAX_STEPS
from storage.targets import StoredSample, Targets

_ROUNDING = 1e-3  # nats: a log-probability may exceed 0 by the rounding of the float32 that made it
LOWEST = -float(np.finfo(np.float16).max)


def check_values(samples: Sequence[StoredSample], targets: Targets, layout: Layout) -> None:
    """InvalidTargets naming sample, field and position of the first impossible value.

    `targets` are those of the samples one after the other, each of the right dtype and shape.
    """
    check = _UnitCheck(samples, targets)
    check.check_ids(layout)
    check.check_values()


class _UnitCheck:
    """Checks the values of the samples of a unit, all positions at once, and names the first bad one."""

    def __init__(self, samples: Sequence[StoredSample], targets: Targets) -> None:
        self._samples = samples
        self._targets = targets

    def check_ids(self, layout: Layout) -> None:
        """Below the vocabulary's size, shared, distinct, the target's own among them."""
        targets, size = self._targets, layout.vocabulary_size
        too_large = f"an id is not below vocabulary_size {size:,}"
        self._refuse("target_ids", targets.target_ids >= size, too_large)
        self._refuse("ids", targets.ids.max(axis=1) >= size, too_large)
        if layout.shared_ids != ((0, size),):
            foreign = ~layout.shared_mask().take(targets.ids).all(axis=1)
            self._refuse("ids", foreign & targets.soft, "an id is not among the spec's shared_ids")
        ordered = np.sort(targets.ids, axis=1)
        twice = np.logical_or.reduce(ordered[:, 1:] == ordered[:, :-1], axis=1)
        self._refuse("ids", twice & targets.soft, "an id is given twice")
        absent = ~np.logical_or.reduce(targets.ids == targets.target_ids[:, None], axis=1)
        self._refuse("target_ids", absent & targets.soft, "the target of a soft position is not among its ids")

    def check_values(self) -> None:
        """Finite, descending and within the ranges that can be stored."""
        values, own, tail = self._targets.logprobs, self._targets.target_logprobs, self._targets.tail
        finite = np.logical_and.reduce(np.isfinite(values), axis=1)
        self._refuse("logprobs", ~finite, "a value is not finite")
        descends = np.logical_and.reduce(values[:, 1:] <= values[:, :-1], axis=1)
        self._refuse("logprobs", values[:, 0] > _ROUNDING, "a log-probability is above 0")
        self._refuse("logprobs", ~descends, "the values do not descend")
        self._refuse("logprobs", values[:, -1] < -VALUE_STEP * MAX_STEPS / 2, "a value is too low to be stored")
        self._refuse("target_logprobs", ~np.isfinite(own), "a value is not finite")
        self._refuse("target_logprobs", own > _ROUNDING, "a log-probability is above 0")
        self._refuse("target_logprobs", own < LOWEST, f"a log-probability is below {LOWEST:g}")
        empty = np.isneginf(tail)
        self._refuse("tail", np.isnan(tail).any(axis=1), "a value is not a number")
        self._refuse("tail", tail.max(axis=1) > TAIL_ORIGIN, f"a log-mass is above {TAIL_ORIGIN:g}")
        self._refuse("tail", empty.any(axis=1) != empty.all(axis=1), "it is empty at one temperature, not at another")

    def _refuse(self, name: str, wrong: NDArray[np.bool_] | np.bool_, problem: str) -> None:
        if not wrong.any():
            return
        position = int(np.argmax(wrong))
        for sample in self._samples:
            if position < len(sample.targets):
                raise InvalidTargets(
                    f"sample {sample.key}: {name}: {problem} (position {position} of {len(sample.targets)})"
                )
            position -= len(sample.targets)
