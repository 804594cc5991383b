"""What a data loader gives to the student: items of single samples, joined into one typed batch.

loader = DataLoader(source.dataset(samples), collate_fn=source.collator())
batch = next(iter(loader)).to(device)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from firstsight.prompting import Encoded, answer_index, collate
from phase2_student.loss.targets import PositionTargets, TensorFields

# N answer positions of a batch

ItemTargets = TypeVar("ItemTargets")
BatchTargets = TypeVar("BatchTargets", bound=PositionTargets)
OtherTargets = TypeVar("OtherTargets", bound=PositionTargets)


@dataclass(frozen=True, kw_only=True)
class Item(Generic[ItemTargets]):
    """One sample as the student's inputs, and its targets."""

    name: str
    """Id of the sample."""
    encoded: Encoded
    targets: ItemTargets


@dataclass(frozen=True, kw_only=True)
class Batch(TensorFields, Generic[BatchTargets]):
    """A micro-batch. It is one opaque argument of `forward`, so that DDP and FSDP pass it on unchanged, in its own dtypes."""

    inputs: dict[str, Tensor]
    """Padded model inputs from `prompting.collate`."""
    answer_rows: Tensor
    """int64 [N], row of each answer position in the padded inputs."""
    answer_columns: Tensor
    """int64 [N], column of each answer position."""
    targets: BatchTargets
    """Targets of the N answer positions, sample by sample."""
    names: tuple[str, ...]
    """Ids of the samples, in order."""

    def with_targets(self, targets: OtherTargets) -> Batch[OtherTargets]:
        """The same samples with other targets."""
        return Batch(
            inputs=self.inputs,
            answer_rows=self.answer_rows,
            answer_columns=self.answer_columns,
            targets=targets,
            names=self.names,
        )

    def counted(self) -> int:
        """N of the loss: answer positions with a soft target or a hard label."""
        return int(self.targets.counted())


@dataclass(frozen=True, kw_only=True)
class Collator(Generic[ItemTargets, BatchTargets]):
    """Joins items into one batch: padded model inputs, and the targets of all answer positions one after the other."""

    join: Callable[[Sequence[Item[ItemTargets]]], BatchTargets]
    """Joins the targets of the items into those of a batch."""
    pad_id: int
    """The id that fills `input_ids` on the right."""
    blank: Encoded | None = None
    """From `Prompter.blank`, for several processes. They wait for each other's gradients and shards module by module, so a process
    with only text in its micro-batch must still go through the vision tower."""

    def __call__(self, items: Sequence[Item[ItemTargets]]) -> Batch[BatchTargets]:
        """The batch of some items."""
        encoded = [item.encoded for item in items]
        rows, columns = answer_index(encoded)
        return Batch(
            inputs=collate(encoded, self.pad_id, self.blank),
            answer_rows=rows,
            answer_columns=columns,
            targets=self.join(items),
            names=tuple(item.name for item in items),
        )
