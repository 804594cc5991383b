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
    """Seconds that it took on two cores (docs/benchmarks.md); another machine may differ."""


PARTS = {
    "store": Part(module="benchmarks.suite.store", title="The store", about=40),
    "loader": Part(module="benchmarks.suite.loader", title="Reading while training", about=45),
    "growth": Part(module="benchmarks.suite.growth", title="Growth with the samples", about=90),
    "loss": Part(module="benchmarks.suite.loss", title="The loss", about=240),
    "peers": Part(module="benchmarks.suite.peers", title="The loss against that of other projects", about=235),
    "step": Part(module="benchmarks.step", title="A whole step", about=345),
    "dump": Part(module="benchmarks.dump", title="The dump", about=345),
    "sweep": Part(module="benchmarks.sweep", title="Eight runs", about=170),
    "real_teacher": Part(module="benchmarks.suite.real_teacher", title="A real teacher", about=220),
}
"""The parts by name."""
