"""Kind exact of format version 2: the teacher's hidden states, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.base import EXACT, DecodeError, EncodedUnit, ExactUnit, FormatVersion
from storage.format.head_table import exact_sizes
from storage.format.samples import check_turns, decode_turns, encode_turns
from storage.format.table import Counts
from storage.format.v2.arrays import EXACT_TABLE
from storage.format.v2.layout import ExactLayout, exact_layout
from storage.format.v2.states import join_states, not_finite, split_states
from storage.keys import check_key
from storage.targets import ExactSample, ExactTargets, StoredSample

STATE_ARRAYS = ("state_high", "state_low")
"""The arrays that are read by part."""


class Exact2(FormatVersion):
    """Kind exact of version 2; see docs/FORMAT.md."""

    number = 2
    kind = EXACT
    max_values: ClassVar[int] = 2**28
    replans_skipped = True
    names_head = True
    table = EXACT_TABLE
    layout: ExactLayout

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.layout = layout = exact_layout(spec)
        self.head = exact_sizes(layout.head_rows, layout.hidden_size, layout.head_dtype, layout.head_bias)

    def describe(self) -> str:
        """See `FormatVersion.describe`."""
        return f"exact, hidden_size = {self.layout.hidden_size}, {self.layout.state_dtype}"

    def values_per_position(self) -> int:
        """Numbers in a state; see `FormatVersion.values_per_position`."""
        return self.layout.hidden_size

    def checked(self, sample: StoredSample) -> ExactSample:
        """See `FormatVersion.checked`."""
        where = f"sample {check_key(sample.key)}"
        if not isinstance(sample, ExactSample):
            raise InvalidTargets(f"{where}: this cache holds {EXACT} targets, got {type(sample).__name__}")
        count = len(sample.targets.target_ids)
        wanted = {
            "target_ids": (np.dtype(np.uint32), (count,)),
            "states": (self.layout.bits, (count, self.layout.hidden_size)),
        }
        for name, (dtype, shape) in wanted.items():
            array = getattr(sample.targets, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InvalidTargets(f"{where}: {name} must be {dtype} of shape {shape}, got {got}")
        check_turns(sample)
        targets = ExactTargets(target_ids=sample.targets.target_ids.copy(), states=sample.targets.states.copy())
        return replace(sample, hard=bool(sample.hard), targets=targets)

    def encode(self, samples: Sequence[StoredSample]) -> EncodedUnit:
        """See `FormatVersion.encode`."""
        parts = [sample.targets for sample in samples if isinstance(sample.targets, ExactTargets)]
        positions = sum(map(len, parts))
        target = np.empty(positions, dtype=np.uint32)
        high = np.empty((positions, self.layout.hidden_size), dtype=np.uint8)
        low = np.empty((positions, high.shape[1] * (self.layout.bits.itemsize - 1)), dtype=np.uint8)
        start = 0
        for sample, part in zip(samples, parts, strict=True):
            rows = slice(start, start := start + len(part))
            target[rows] = part.target_ids
            high[rows], low[rows] = split_states(part.states)
            self._refuse(
                sample.key, "target_ids", target[rows] >= self.layout.head_rows, "an id is not a row of the head"
            )
            self._refuse(
                sample.key, "states", not_finite(high[rows], self.layout.state_dtype), "a number is not finite"
            )
        counts = Counts(samples=len(samples), positions=positions, soft_positions=positions)
        arrays = {**encode_turns(samples), "target": target, "state_high": high, "state_low": low}
        return EncodedUnit(counts=counts, attributes={}, arrays=arrays)

    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ExactUnit:  # noqa: ARG002
        """The samples and target ids; the states are checked where `arrays` has them. See `FormatVersion.decode`."""
        target = arrays["target"]
        rows = decode_turns(arrays, len(target))
        if (target >= self.layout.head_rows).any():
            raise DecodeError("target", f"a target id is not below {self.layout.head_rows:,}")
        if "state_high" in arrays:
            self._check_finite(arrays["state_high"])
        return ExactUnit(**vars(rows), target_ids=target)

    def decode_states(self, high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[Any]:
        """The bits of the states in some rows of `STATE_ARRAYS`; DecodeError."""
        self._check_finite(high)
        return join_states(high, low, self.layout.bits)

    def _check_finite(self, high: NDArray[np.uint8]) -> None:
        if not_finite(high, self.layout.state_dtype).any():
            raise DecodeError("state_high", "a number of a state is not finite")

    def problem(self, attributes: Mapping[str, Any], shapes: Any, counts: Counts) -> str | None:
        """See `FormatVersion.problem`; every position is soft."""
        if found := super().problem(attributes, shapes, counts):
            return found
        if counts.soft_positions != counts.positions:
            return f"it has {counts.soft_positions:,} states of {counts.positions:,} positions"
        return None

    @staticmethod
    def _refuse(key: str, name: str, wrong: NDArray[np.bool_], problem: str) -> None:
        if wrong.any():
            raise InvalidTargets(f"sample {key}: {name}: {problem} (position {int(np.argmax(wrong))} of {len(wrong)})")
