"""The fused loss against plain cross-entropy and against the same loss without fusion, by `benchmarks.loss`.

    python -m benchmarks --only loss

Every measurement is a process of its own; memory is its peak above the inputs.
"""

from __future__ import annotations

from benchmarks.suite.children import in_turns, time_and_memory
from benchmarks.suite.result import Outcome

BASELINE = "cross-entropy"
_WHAT = {"fused": "the loss from a top_k cache", "unfused": "the same loss by autograd"}


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    N, D, V, K, repeats = (64, 64, 2000, 8, 1) if quick else (2048, 1536, 151_936, 64, 3)
    sizes = ("--positions", N, "--hidden", D, "--vocabulary", V, "--top-k", K)
    found = in_turns(lambda name: ["benchmarks.loss", *sizes, "--one", name], (BASELINE, *_WHAT), repeats)
    outcomes: list[Outcome] = []
    for name, what in _WHAT.items():
        title = f"{what}, {N:,} positions"
        outcomes += time_and_memory(f"loss.{{}}.{name}", title, "plain cross-entropy", found[name], found[BASELINE])
    return outcomes
