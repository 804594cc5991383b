"""Batches by token budget: samples of similar length together, to keep padding low."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.05
"""Largest share of padding in a batch; a sample that would exceed it begins a new batch."""


def batch_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group samples so that no padded batch exceeds `budget` tokens or `MAX_PADDING`.

    A single sample longer than the budget is a batch of its own. The grouping depends only on the lengths and their order,
    never on the worker, because LLM.int8 results depend on which samples share a batch.

    Args:
        lengths: tokens of each sample.
        budget: most tokens of a batch, padding included.

    Returns:
        Indices of the samples of each batch, longest samples first.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = tokens = 0
    for index in order:
        padded = longest * (len(batches[-1]) + 1) if batches else 0
        if batches and padded <= budget and padded - tokens - lengths[index] <= MAX_PADDING * padded:
            batches[-1].append(index)
            tokens += lengths[index]
        else:
            batches.append([index])
            longest = tokens = lengths[index]
    return batches
