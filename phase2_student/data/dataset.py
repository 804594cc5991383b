"""Samples joined with their cached targets, by key; never by row number.

data = DistillationDataset(samples, prompter, cache, temperature=2.0)   # refuses what does not fit, by name
loader = DataLoader(data, collate_fn=Collator(pad_id))
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError
from firstsight.prompting import Encoded, Prompter, answer_index, collate
from storage.reader import Cache
from storage.targets import SampleTargets, Targets
from storage.temperature import at_temperature

# P answer positions of a sample, N of a batch, K stored entries


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample as model inputs, and its targets at the training temperature."""

    encoded: Encoded
    ids: Tensor
    """int64 [P, K]."""
    log_p: Tensor
    """float32 [P, K]."""
    log_r: Tensor
    """float32 [P]."""
    soft: Tensor
    """bool [P]."""
    hard: bool


class DistillationDataset(Dataset[Item]):
    """Samples with their targets.

    Args:
        samples: of one data file; those that the dump skipped are left out and counted in `skipped`.
        prompter: the student's.
        cache: opened.
        temperature: within the cache's nodes.
        progress: show a bar while the targets are compared.

    Raises:
        DataError: samples that the cache does not hold: how many, which, and what to run.
        AlignmentError: target ids that differ from the student's own tokens of the answer, with the position.
        TemperatureOutOfRange: the cache has no tail mass for this temperature.
    """

    def __init__(
        self, samples: Sequence[Sample], prompter: Prompter, cache: Cache, *, temperature: float, progress: bool = False
    ) -> None:
        keys = {sample.key: sample for sample in samples}
        skipped = cache.skipped()
        missing = [sample for key, sample in keys.items() if key not in cache and key not in skipped]
        if missing:
            names = ", ".join(sample.place for sample in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"{len(missing)} of {len(keys)} samples have no targets in {cache.location} ({names}): new or edited since "
                "the dump; run fs-teacher dump with this recipe"
            )
        self.samples = [(key, sample) for key, sample in keys.items() if key in cache]
        self.skipped = len(keys) - len(self.samples)
        self.prompter = prompter
        self.cache = cache
        self.temperature = temperature
        self._lengths: list[int] | None = None
        # what stands in a hard-only row, whose stored ids are all zero: the loss takes distinct shared ids
        self._any_ids = cache.shared_mask().nonzero()[0][: cache.top_k].astype(np.int64)
        for key, sample in tqdm(
            self.samples, desc="checking targets", unit=" sample", disable=not progress, leave=False
        ):
            self._check(sample, cache[key])
        if self.samples:
            self._at_temperature(cache[self.samples[0][0]].targets)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        """The sample; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""
        key, sample = self.samples[index if index >= 0 else ~index]
        cached = self.cache[key]
        targets = cached.targets if index >= 0 else _no_positions(cached.targets)
        log_p, log_r = self._at_temperature(targets)
        return Item(
            encoded=self.prompter.encode(sample, targets.target_ids.tolist()),
            ids=torch.from_numpy(np.where(targets.soft[:, None], targets.ids.astype(np.int64), self._any_ids)),
            log_p=torch.from_numpy(log_p),
            log_r=torch.from_numpy(log_r),
            soft=torch.from_numpy(targets.soft),
            hard=cached.hard,
        )

    def at(self, temperature: float) -> DistillationDataset:
        """The same samples, checked already, at another temperature of the cache.

        Raises:
            TemperatureOutOfRange: the cache has no tail mass for it.
        """
        self.lengths()  # both then have them
        other = copy.copy(self)
        other.temperature = temperature
        if other.samples:
            other._at_temperature(other.cache[other.samples[0][0]].targets)
        return other

    def lengths(self) -> list[int]:
        """Tokens of every sample, prompt, images and answer; no image is decoded."""
        if self._lengths is None:
            self._lengths = [
                self.prompter.prompt_tokens(sample)[0] + len(self.cache[key].targets) for key, sample in self.samples
            ]
        return self._lengths

    def _at_temperature(self, targets: Targets) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        log_p, log_r = at_temperature(targets.logprobs, targets.tail, self.cache.temperatures, self.temperature)
        hard_only = ~targets.soft
        log_p[hard_only], log_r[hard_only] = 0.0, -np.inf  # any finite row: its weight is zero
        return log_p, log_r

    def _check(self, sample: Sample, cached: SampleTargets) -> None:
        if not cached.hard or sample.answer is None:
            return
        own = self.prompter.answer_ids(sample.answer)
        stored = cached.targets.target_ids.tolist()
        if own != stored:
            at = next(
                (i for i, (a, b) in enumerate(zip(own, stored, strict=False)) if a != b), min(len(own), len(stored))
            )
            expected, got = own[at : at + 1], stored[at : at + 1]
            raise AlignmentError(
                f"{sample.place}: sample {sample.id!r}: answer position {at}: the student's token is {expected}, the cache "
                f"holds {got}; the cache was made for another tokenizer: dump again for this student"
            )


def _no_positions(targets: Targets) -> Targets:
    return Targets(**{name: array[:0] for name, array in vars(targets).items()})


class Collator:
    """Items to one batch: padded model inputs, and the targets of all answer positions in a row.

    Args:
        pad_id: fills `input_ids` on the right.
        blank: of `Prompter.blank`, for several processes: they wait for each other's gradients and shards module by module,
            so one whose micro-batch is text alone must go through the vision tower as the others do.
    """

    def __init__(self, pad_id: int, blank: Encoded | None = None) -> None:
        self.pad_id = pad_id
        self.blank = blank

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Model inputs of `prompting.collate`, and with N answer positions:

        answer_rows, answer_columns, target_ids: int64 [N]; stored_ids int64 [N, K]; log_p float32 [N, K];
        log_r float32 [N]; soft, hard: bool [N].
        """
        encoded = [item.encoded for item in items]
        rows, columns = answer_index(encoded)
        return {
            **collate(encoded, self.pad_id, self.blank),
            "answer_rows": rows,
            "answer_columns": columns,
            "target_ids": torch.cat([item.encoded.target_ids for item in items]),
            "stored_ids": torch.cat([item.ids for item in items]),
            "log_p": torch.cat([item.log_p for item in items]),
            "log_r": torch.cat([item.log_r for item in items]),
            "soft": torch.cat([item.soft for item in items]),
            "hard": torch.cat([torch.full((item.encoded.positions,), item.hard) for item in items]),
        }
