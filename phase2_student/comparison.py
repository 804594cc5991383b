"""Paired comparison of two models on the same samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `first - second` over paired samples, with its 95 % percentile bootstrap interval.

    Args:
        first: one value per sample, such as 1.0 for an exact answer.
        second: of the other model, same samples in the same order.
        resamples: bootstrap resamples of the pairs.
        seed: of the resampling.

    Returns:
        (difference, low, high). Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.array(
        [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(resamples)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
