"""Batches by token budget: samples of like length together, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.05
"""Share of a batch's padded tokens that may be padding; a sample that would raise it above begins a new batch."""


def batch_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group samples so that no padded batch exceeds `budget` tokens or `MAX_PADDING`.

    A single sample longer than the budget is a batch of its own. The grouping depends on the lengths and their order
    alone, never on the worker: LLM.int8 results depend on who shares a batch.

    Args:
        lengths: tokens of each sample.
        budget: rows times tokens of the longest row.

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
