"""Which samples are trained on in which step: the same for any number of processes if the global batch is the same.

    batches = GlobalBatches(lengths, batch_size=2, accumulation=4, processes=2, rank=0, seed=0)
    batches.set_epoch(3)
    for indices in batches: ...      # the micro-batches of process 0

An optimiser step takes a global batch of `batch_size * processes * accumulation` samples. The order of global batches is drawn
first; then each of them is dealt out to processes and micro-batches. When samples run out, fillers complete the last batch: the
complement `~index` of a real sample, for which the dataset returns no answer positions, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_WINDOW = 32
"""Number of global batches that are sorted by length together."""


class GlobalBatches(Sampler[list[int]]):
    """The batch sampler of one process.

    Args:
        lengths: tokens of each sample; used for grouping if `group` is set.
        batch_size: samples of a micro-batch.
        accumulation: micro-batches per process and step.
        processes: number of processes.
        rank: the rank of this process.
        seed: seed of the order, together with the epoch.
        shuffle: draw a new order for each epoch; False: one order for all epochs.
        group: put samples of similar length into the same global batch, which saves padding.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        accumulation: int = 1,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        group: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.processes = processes
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.group = group
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch: each one has its own order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this process."""
        return -(-len(self.lengths) // (self.batch_size * self.processes))

    def steps(self) -> list[list[int]]:
        """The samples of every optimiser step of this epoch, over all processes."""
        generator = np.random.default_rng([self.seed, self.epoch])
        count = len(self.lengths)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        size = self.batch_size * self.processes * self.accumulation
        window = size * _WINDOW if self.shuffle else max(1, count)
        batches: list[list[int]] = []
        for start in range(0, count, window):
            part = order[start : start + window]
            if self.group:
                part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[first : first + size].tolist() for first in range(0, len(part), size)]
        if not (self.shuffle and self.group):
            return batches
        whole = count // size  # an incomplete batch must come last: the trainer expects it there
        return [batches[i] for i in generator.permutation(whole)] + batches[whole:]

    def __iter__(self) -> Iterator[list[int]]:
        round_size = self.batch_size * self.processes
        for samples in self.steps():
            shortest = min(samples, key=lambda index: int(self.lengths[index]))
            samples = samples + [~shortest] * (-len(samples) % round_size)
            for start in range(self.rank * self.batch_size, len(samples), round_size):
                yield samples[start : start + self.batch_size]
