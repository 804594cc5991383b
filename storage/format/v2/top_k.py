"""Kind top_k of format version 2: what version 1 stores, several turns, and a tail with a shape where the specification has a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargets
from storage.format.base import DecodedUnit, DecodeError, EncodedUnit, TopKVersion
from storage.format.head_table import tail_sizes
from storage.format.samples import check_turns, decode_turns, encode_turns
from storage.format.table import Counts
from storage.format.v1.checks import check_values
from storage.format.v1.encoding import decode_targets, encode_targets
from storage.format.v1.ranks import transposed
from storage.format.v2.arrays import TAIL_TABLE, TOP_K_TABLE
from storage.format.v2.layout import top_k_layout
from storage.targets import SampleTargets, ShapedTargets, StoredSample, Targets


class TopK2(TopKVersion):
    """Kind top_k of version 2; see docs/FORMAT.md."""

    number = 2
    replans_skipped = True
    names_head = True

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.layout = layout = top_k_layout(spec)
        self.table = TAIL_TABLE if layout.tail_rank else TOP_K_TABLE
        if layout.tail_rank:
            self.targets = ShapedTargets
            self.head = tail_sizes(layout.vocabulary_size, layout.tail_rank, layout.hidden_size)

    def describe(self) -> str:
        """See `FormatVersion.describe`."""
        rank = self.layout.tail_rank
        return super().describe() + (f", tail_rank = {rank}" if rank else "")

    def checked(self, sample: StoredSample) -> SampleTargets:
        """See `FormatVersion.checked`."""
        check_turns(sample)
        return super().checked(sample)

    def encode(self, samples: Sequence[StoredSample]) -> EncodedUnit:
        """See `FormatVersion.encode`."""
        targets = self.joined(samples)
        check_values(samples, targets, self.layout)
        attributes, arrays = encode_targets(targets, self.layout)
        if isinstance(targets, ShapedTargets):
            arrays["tail_coefficient"] = _encode_coefficients(targets)
        counts = Counts(samples=len(samples), positions=len(targets), soft_positions=len(arrays["target_logprob"]))
        return EncodedUnit(counts=counts, attributes=attributes, arrays={**encode_turns(samples), **arrays})

    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecodedUnit:
        """See `FormatVersion.decode`."""
        rows = decode_turns(arrays, len(arrays["target"]))
        targets = decode_targets(attributes, arrays, self.layout)
        if self.layout.tail_rank:
            targets = _with_coefficients(targets, arrays["tail_coefficient"])
        return DecodedUnit.of(rows, targets)


def _encode_coefficients(targets: ShapedTargets) -> NDArray[Any]:
    """[r, Q] int8 where these hold all values, else float16; InvalidTargets for what float16 does not hold."""
    values = transposed(targets.tail_coefficients[targets.soft])
    whole = np.rint(values)
    if values.size and (whole == values).all() and np.abs(values).max() <= 127:
        return values.astype(np.int8)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise InvalidTargets(
            "tail_coefficients: a value is not finite, or larger than float16 holds; enlarge the scale"
        )
    return stored


def _with_coefficients(targets: Targets, stored: NDArray[Any]) -> ShapedTargets:
    coefficients = stored.T.astype(np.float32)
    if not np.isfinite(coefficients).all():
        raise DecodeError("tail_coefficient", "a value is not finite")
    spread = np.zeros((len(targets), len(stored)), dtype=np.float32)
    spread[targets.soft] = coefficients
    return ShapedTargets(
        **{item.name: getattr(targets, item.name) for item in fields(Targets)}, tail_coefficients=spread
    )
