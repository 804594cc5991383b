"""Format version 1: the k largest log-probabilities of each position and the tail's mass at the node temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from storage.format.base import DecodedUnit, EncodedUnit, TopKVersion
from storage.format.layout import layout_of
from storage.format.samples import decode_samples, encode_samples, one_turn
from storage.format.table import Counts
from storage.format.v1.arrays import TABLE
from storage.format.v1.checks import check_values
from storage.format.v1.encoding import decode_targets, encode_targets
from storage.targets import StoredSample


class Version1(TopKVersion):
    """Version 1; see docs/FORMAT.md."""

    number = 1
    table = TABLE

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.layout = layout_of(spec)

    def encode(self, samples: Sequence[StoredSample]) -> EncodedUnit:
        """See `FormatVersion.encode`."""
        one_turn(samples)
        targets = self.joined(samples)
        check_values(samples, targets, self.layout)
        attributes, arrays = encode_targets(targets, self.layout)
        counts = Counts(samples=len(samples), positions=len(targets), soft_positions=len(arrays["target_logprob"]))
        return EncodedUnit(counts=counts, attributes=attributes, arrays={**encode_samples(samples), **arrays})

    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecodedUnit:
        """See `FormatVersion.decode`."""
        rows = decode_samples(arrays, len(arrays["target"]))
        return DecodedUnit.of(rows, decode_targets(attributes, arrays, self.layout))
