"""Intervals: Wilson's for a share; bootstrap intervals for a mean, and for the paired difference of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_AT_ONCE = 2**22
"""Number of drawn indices held at once."""

_Z = 1.959963984540054
"""The standard normal distribution has 95% of its mass within plus and minus this."""


def wilson(right: int, count: int) -> tuple[float, float, float]:
    """A share, with its 95% score interval.

    Args:
        right: how many of them are right.
        count: how many there are, at least 1.

    Returns:
        (share, low, high). Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    share = right / count
    weight = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / weight
    half = _Z / weight * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return share, (0.0 if right == 0 else centre - half), (1.0 if right == count else centre + half)


def bootstrap_mean(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of the values, with its 95% percentile bootstrap interval.

    Args:
        values: one value per sample.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        (mean, low, high). Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    known = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(known))
    means = [
        known[generator.integers(0, len(known), (min(step, resamples - start), len(known)))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `first - second` over paired samples, with its 95% percentile bootstrap interval.

    Args:
        first: one value per sample, such as 1.0 for an exact answer.
        second: the other model's values, for the same samples in the same order.
        resamples: number of bootstrap resamples of the pairs.
        seed: seed of the resampling.

    Returns:
        (difference, low, high).
    """
    differences = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, resamples=resamples, seed=seed)
