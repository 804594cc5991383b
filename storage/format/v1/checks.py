"""What the writer demands of the targets of a sample, before anything is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.v1.encoding import MAX_STEPS, TAIL_ORIGIN, VALUE_STEP
from storage.plan import check_key
from storage.spec import Layout
from storage.targets import SampleTargets, Targets

_ROUNDING = 1e-3  # nats: a log-probability may exceed 0 by the rounding of the float32 that made it
_LOWEST = -float(np.finfo(np.float16).max)


def copied(sample: SampleTargets, layout: Layout) -> SampleTargets:
    """A copy of a sample with zeros where a position is not soft; InvalidTargets for a wrong key, dtype or shape."""
    check_key(sample.key)
    given = sample.targets
    count, nodes = len(given.target_ids), len(layout.temperatures)
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in (
        ("ids", np.uint32, (count, layout.top_k)),
        ("logprobs", np.float32, (count, layout.top_k)),
        ("tail", np.float32, (count, nodes)),
        ("target_ids", np.uint32, (count,)),
        ("target_logprobs", np.float32, (count,)),
        ("soft", np.bool_, (count,)),
    ):
        array = getattr(given, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidTargets(f"sample {sample.key}: {name} must be {np.dtype(dtype)} of shape {shape}, got {got}")
        arrays[name] = array.copy()
    if not arrays["soft"].all():
        for name in ("ids", "logprobs", "tail", "target_logprobs"):
            arrays[name][~arrays["soft"]] = 0
    return SampleTargets(key=sample.key, hard=bool(sample.hard), targets=Targets(**arrays))


class UnitCheck:
    """Checks the values of the samples of a unit, all positions at once, and names the first bad one."""

    def __init__(self, samples: Sequence[SampleTargets], targets: Targets) -> None:
        self._samples = samples
        self._targets = targets

    def run(self, layout: Layout) -> None:
        """InvalidTargets naming sample, field and position."""
        self._check_ids(layout)
        self._check_values()

    def _check_ids(self, layout: Layout) -> None:
        targets, size = self._targets, layout.vocabulary_size
        too_large = f"an id is not below vocabulary_size {size:,}"
        self._refuse("target_ids", targets.target_ids >= size, too_large)
        self._refuse("ids", targets.ids.max(axis=1) >= size, too_large)
        if layout.shared_ids != ((0, size),):
            foreign = ~layout.shared_mask().take(targets.ids).all(axis=1)
            self._refuse("ids", foreign & targets.soft, "an id is not among the spec's shared_ids")
        ordered = np.sort(targets.ids, axis=1)
        twice = np.logical_or.reduce(ordered[:, 1:] == ordered[:, :-1], axis=1)
        self._refuse("ids", twice & targets.soft, "an id stands twice")
        absent = ~np.logical_or.reduce(targets.ids == targets.target_ids[:, None], axis=1)
        self._refuse("target_ids", absent & targets.soft, "the target of a soft position is not among its ids")

    def _check_values(self) -> None:
        values, own, tail = self._targets.logprobs, self._targets.target_logprobs, self._targets.tail
        finite = np.logical_and.reduce(np.isfinite(values), axis=1)
        self._refuse("logprobs", ~finite, "a value is not finite")
        descends = np.logical_and.reduce(values[:, 1:] <= values[:, :-1], axis=1)
        self._refuse("logprobs", values[:, 0] > _ROUNDING, "a log-probability is above 0")
        self._refuse("logprobs", ~descends, "the values do not descend")
        self._refuse("logprobs", values[:, -1] < -VALUE_STEP * MAX_STEPS / 2, "a value is too low to be stored")
        self._refuse("target_logprobs", ~np.isfinite(own), "a value is not finite")
        self._refuse("target_logprobs", own > _ROUNDING, "a log-probability is above 0")
        self._refuse("target_logprobs", own < _LOWEST, f"a log-probability is below {_LOWEST:g}")
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
