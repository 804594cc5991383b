"""Format version 1: the k largest log-probabilities of each position and the tail's mass at the node temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from storage.format.base import DecodedUnit, EncodedUnit, FormatVersion
from storage.format.layout import layout_of
from storage.format.table import Counts
from storage.format.v1.arrays import TABLE
from storage.format.v1.checks import check_values
from storage.format.v1.encoding import decode_unit, encode_unit
from storage.keys import check_key
from storage.targets import SampleTargets, Targets


class Version1(FormatVersion):
    """Version 1; see docs/FORMAT.md."""

    number = 1
    table = TABLE
    targets: ClassVar[type[Targets]] = Targets

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.layout = layout_of(spec)

    def describe(self) -> str:
        """See `FormatVersion.describe`."""
        return f"top_k = {self.layout.top_k}"

    def values_per_position(self) -> int:
        """Stored entries or tails, whichever are more; see `FormatVersion.values_per_position`."""
        return max(self.layout.widths.values())

    def checked(self, sample: SampleTargets) -> SampleTargets:
        """See `FormatVersion.checked`; zeros where a position is not soft."""
        where = f"sample {check_key(sample.key)}"
        targets = sample.targets.checked(self.layout.widths, where)
        return SampleTargets(key=sample.key, hard=bool(sample.hard), targets=targets)

    def encode(self, samples: Sequence[SampleTargets]) -> EncodedUnit:
        """See `FormatVersion.encode`."""
        targets = Targets.concatenate([sample.targets for sample in samples], self.layout.widths)
        check_values(samples, targets, self.layout)
        attributes, arrays = encode_unit(samples, targets, self.layout)
        counts = Counts(samples=len(samples), positions=len(targets), soft_positions=len(arrays["target_logprob"]))
        return EncodedUnit(counts=counts, attributes=attributes, arrays=arrays)

    def decode(self, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecodedUnit:
        """See `FormatVersion.decode`."""
        return decode_unit(attributes, arrays, self.layout)
