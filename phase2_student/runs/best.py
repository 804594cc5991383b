"""Which validation of a run is its best: one rule for checkpoints, results, tables and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable


def best_loss(losses: Iterable[float]) -> float | None:
    """The lowest finite validation loss; None where there is none. A loss that is NaN or infinite is never the best."""
    return min((loss for loss in losses if math.isfinite(loss)), default=None)
