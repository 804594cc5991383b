"""Which validation of a run is the best, and which of its students is the trained one: one rule for all commands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path


def best_loss(losses: Iterable[float]) -> float | None:
    """The lowest finite validation loss; None if there is none. A loss that is NaN or infinite is never the best."""
    return min((loss for loss in losses if math.isfinite(loss)), default=None)


def trained_student(output_dir: Path) -> Path:
    """Directory of a run's student: `best/`, or `final/` if the run had no validation."""
    best, final = output_dir / "best", output_dir / "final"
    return final if final.is_dir() and not best.is_dir() else best
