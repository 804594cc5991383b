"""What the cache holds for one sample: soft targets in the student's vocabulary, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Soft targets of P consecutive answer positions, K stored entries each, n node temperatures."""

    ids: NDArray[np.uint32]
    """[P, K] student ids, in descending order of their log-probability."""
    logprobs: NDArray[np.float32]
    """[P, K] natural-log probability at T = 1 over the shared ids, nats."""
    tail: NDArray[np.float32]
    """[P, n] log of the sum over the ids not stored of exp(v_i / T), per node T, nats; -inf: nothing there."""
    target_ids: NDArray[np.uint32]
    """[P] the answer's own token as a student id; among `ids` wherever `soft`."""
    target_logprobs: NDArray[np.float32]
    """[P] the teacher's log-probability of that token, nats; may lie 30 and more down."""
    soft: NDArray[np.bool_]
    """[P] False: no soft target at this position, only the hard label; its other fields are zero."""

    def __len__(self) -> int:
        return len(self.target_ids)


@dataclass(frozen=True, kw_only=True)
class SampleTargets:
    """The targets of one sample."""

    key: str
    """64 lower-case hex digits: the sha256 of the sample's content."""
    hard: bool
    """True: `target_ids` are ground truth, so the hard-label loss applies. False: the teacher's own answer."""
    targets: Targets
