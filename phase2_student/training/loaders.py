"""The data loaders of one process: its part of every global batch, in the order of `data.order.GlobalBatches`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from firstsight.errors import FirstSightError
from phase2_student.data.order import GlobalBatches
from phase2_student.training.callbacks.signals import leave_interrupts_to_the_main_process
from storage.errors import CacheError


def train_batches(dataset: Any, args: Any) -> GlobalBatches:
    """Micro-batches of this process.

    Args:
        dataset: a `source.SampleDataset`.
        args: `transformers.TrainingArguments`.
    """
    lengths = dataset.lengths() if _grouped(args) else [0] * len(dataset)
    return global_batches(lengths, args, processes=args.world_size, rank=args.process_index)


def global_batches(lengths: Sequence[int], args: Any, *, processes: int, rank: int = 0) -> GlobalBatches:
    """The batches of a training run.

    Args:
        lengths: tokens of each sample.
        args: `transformers.TrainingArguments`.
        processes: number of processes.
        rank: the process whose micro-batches they are.
    """
    return GlobalBatches(
        lengths,
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=processes,
        rank=rank,
        seed=args.seed if args.data_seed is None else args.data_seed,
        shuffle=args.train_sampling_strategy != "sequential",
        group=_grouped(args),
    )


def _grouped(args: Any) -> bool:
    return args.train_sampling_strategy in ("group_by_length", "batch_rebalance")


def validation_batches(dataset: Any, args: Any) -> GlobalBatches:
    """Micro-batches for validation: samples of similar length together, each counted once over all processes."""
    return GlobalBatches(
        dataset.lengths(),
        batch_size=args.per_device_eval_batch_size,
        processes=args.world_size,
        rank=args.process_index,
        shuffle=False,
    )


class _Handed(Dataset[Any]):
    """A dataset that returns errors of data as items: a worker process would pass on only their text, with a traceback.

    Args:
        dataset: a `source.SampleDataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (FirstSightError, CacheError) as error:
            return error


def _joined(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Joins items into a batch; returns the first error if there is one among them."""
    return next((item for item in items if isinstance(item, Exception)), None) or collate(items)


def checked_batch(batch: Any) -> Any:
    """A batch of `data_loader`. Raises the FirstSightError or CacheError that came in its place."""
    if isinstance(batch, Exception):
        raise batch
    return batch


def data_loader(dataset: Any, batches: GlobalBatches, collate: Any, args: Any) -> DataLoader[Any]:
    """A loader of this process. It is not prepared by accelerate, which would deal out the micro-batches again.

    What it returns must go through `checked_batch`.
    """
    return DataLoader(
        _Handed(dataset),
        batch_sampler=batches,
        collate_fn=partial(_joined, collate),
        num_workers=args.dataloader_num_workers,
        worker_init_fn=leave_interrupts_to_the_main_process,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        # not every supported transformers has it
        multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
        in_order=getattr(args, "dataloader_in_order", True),
    )


class EpochOfBatches(TrainerCallback):
    """Sets the epoch of the batches, also when training continues in the middle of an epoch."""

    def __init__(self, batches: GlobalBatches, steps_per_epoch: int) -> None:
        self.batches = batches
        self.steps_per_epoch = max(1, steps_per_epoch)

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Set the epoch before the loader is asked for its first batch."""
        self.batches.set_epoch(state.global_step // self.steps_per_epoch)
