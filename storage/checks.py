"""What the writer demands of the targets of a sample, before anything is encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.encoding import MAX_STEPS, TAIL_ORIGIN, VALUE_STEP
from storage.errors import InvalidTargets
from storage.plan import check_key
from storage.spec import Layout
from storage.targets import SampleTargets, Targets

_ROUNDING = 1e-3  # nats: a log-probability may exceed 0 by the rounding of the float32 that made it
_LOWEST = -float(np.finfo(np.float16).max)


def check_sample(sample: SampleTargets, layout: Layout, shared: NDArray[np.bool_]) -> SampleTargets:
    """A copy of the sample with zeros where a position is not soft; InvalidTargets naming key, field and position."""
    check_key(sample.key)
    where = f"sample {sample.key}"
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
            raise InvalidTargets(f"{where}: {name} must be {np.dtype(dtype)} of shape {shape}, got {got}")
        arrays[name] = array.copy()
    hard_only = ~arrays["soft"]
    for name in ("ids", "logprobs", "tail", "target_logprobs"):
        arrays[name][hard_only] = 0
    targets = Targets(**arrays)
    _check_ids(where, targets, layout, shared)
    _check_values(where, targets)
    return SampleTargets(key=sample.key, hard=bool(sample.hard), targets=targets)


def _check_ids(where: str, targets: Targets, layout: Layout, shared: NDArray[np.bool_]) -> None:
    size = layout.vocabulary_size
    _refuse(where, "target_ids", targets.target_ids >= size, f"an id is not below vocabulary_size {size:,}")
    _refuse(where, "ids", (targets.ids >= size).any(axis=1), f"an id is not below vocabulary_size {size:,}")
    _refuse(where, "ids", ~shared[targets.ids].all(axis=1) & targets.soft, "an id is not among the spec's shared_ids")
    ordered = np.sort(targets.ids, axis=1)
    _refuse(where, "ids", (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) & targets.soft, "an id stands twice")
    absent = ~(targets.ids == targets.target_ids[:, None]).any(axis=1)
    _refuse(where, "target_ids", absent & targets.soft, "the target of a soft position is not among its ids")


def _check_values(where: str, targets: Targets) -> None:
    values, tail = targets.logprobs, targets.tail
    _refuse(where, "logprobs", ~np.isfinite(values).all(axis=1), "a value is not finite")
    _refuse(where, "logprobs", (values > _ROUNDING).any(axis=1), "a log-probability is above 0")
    _refuse(where, "logprobs", (values < -VALUE_STEP * MAX_STEPS / 2).any(axis=1), "a value is too low to be stored")
    _refuse(where, "logprobs", (np.diff(values, axis=1) > 0).any(axis=1), "the values do not descend")
    own = targets.target_logprobs
    _refuse(where, "target_logprobs", ~np.isfinite(own), "a value is not finite")
    _refuse(where, "target_logprobs", own > _ROUNDING, "a log-probability is above 0")
    _refuse(where, "target_logprobs", own < _LOWEST, f"a log-probability is below {_LOWEST:g}")
    empty = np.isneginf(tail)
    _refuse(where, "tail", np.isnan(tail).any(axis=1), "a value is not a number")
    _refuse(where, "tail", (tail > TAIL_ORIGIN).any(axis=1), f"a log-mass is above {TAIL_ORIGIN:g}")
    _refuse(where, "tail", empty.any(axis=1) != empty.all(axis=1), "it is empty at one temperature, not at another")


def _refuse(where: str, name: str, wrong: NDArray[np.bool_] | np.bool_, problem: str) -> None:
    if wrong.any():
        raise InvalidTargets(f"{where}: {name}: {problem} (position {int(np.argmax(wrong))} of {np.size(wrong)})")
