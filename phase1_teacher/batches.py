"""Batches by token budget: samples of like length together, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence


def batch_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group samples so that no padded batch exceeds `budget` tokens; a single longer sample is a batch of its own.

    The grouping depends on the lengths and their order alone, never on the worker: LLM.int8 results depend on who shares
    a batch.

    Args:
        lengths: tokens of each sample.
        budget: rows times tokens of the longest row.

    Returns:
        Indices of the samples of each batch, longest samples first.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the padded tokens of all batches that is padding."""
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / padded if padded else 0.0
