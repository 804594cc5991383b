"""The parts of `make bench`, in the order in which they run. A new part is a module with `results(quick)` and a row here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module of the suite."""

    module: str
    """Dotted name; its function `results(quick)` measures."""
    title: str
    about: int
    """Estimated seconds on two cores, from docs/log.md; another machine may differ."""


PARTS = {
    "store": Part(module="benchmarks.suite.store", title="The store", about=120),
    "loader": Part(module="benchmarks.suite.loader", title="Reading while training", about=120),
    "growth": Part(module="benchmarks.suite.growth", title="Growth with the samples", about=150),
    "loss": Part(module="benchmarks.suite.loss", title="The loss", about=270),
    "peers": Part(module="benchmarks.suite.peers", title="The loss against that of other projects", about=260),
    "step": Part(module="benchmarks.step", title="A whole step", about=340),
    "dump": Part(module="benchmarks.dump", title="The dump", about=400),
    "sweep": Part(module="benchmarks.sweep", title="Eight runs", about=180),
    "real_teacher": Part(module="benchmarks.suite.real_teacher", title="A real teacher", about=400),
}
"""The parts by name."""
