"""The student in training: the stock model whose `forward` also computes the fused loss; and how it is saved.

The loss is inside `forward`, so that DDP and FSDP see it. The class keeps its stock name, so that a saved student loads in plain
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstsight.models.loading import backbone_states, save_weights
from phase2_student.data.batch import Batch
from phase2_student.loss.fused import distillation_loss, kl_at_one
from phase2_student.loss.objective import Objective
from phase2_student.training.packing import packed_states
from phase2_student.training.weights import plain_state, save_adapter, stock_model


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What `forward` needs to know of the loss."""

    objective: Objective
    unshared_ids: Tensor
    """int64 [U]: rows of the head that the teacher's vocabulary does not have."""


class DistillationForward:
    """A mixin before a model class: if `forward` gets a `batch`, it returns the loss and its parts."""

    loss_settings: LossSettings
    padding_free: bool = False

    def forward(
        self, *args: Any, batch: Batch[Any] | None = None, num_items: Tensor | float = 1.0, **inputs: Any
    ) -> Any:
        """The stock forward; for a batch that is ready for the loss it returns `(loss, LossTerms)`.

        Args:
            args: positional arguments of the stock forward.
            batch: on the model's device.
            num_items: N, answer positions of the whole accumulated batch over all ranks.
            inputs: keyword arguments of the stock forward.
        """
        if batch is None:
            return super().forward(*args, **inputs)  # type: ignore[misc]
        make_states = packed_states if self.padding_free else backbone_states
        states = make_states(self, batch.inputs, batch.answer_rows, batch.answer_columns)
        settings = self.loss_settings
        if settings.unshared_ids.device != states.device:  # once: a copy from the host waits for the backbone
            settings = replace(settings, unshared_ids=settings.unshared_ids.to(states.device))
            self.loss_settings = settings
        model: Any = self
        head, ids, objective = model.get_output_embeddings().weight, settings.unshared_ids, settings.objective
        loss, terms = distillation_loss(states, head, batch.targets, objective, unshared_ids=ids, num_items=num_items)
        if not model.training:
            terms = terms._replace(kl=kl_at_one(states, head, batch.targets, objective, terms, unshared_ids=ids))
        return loss, terms


def with_distillation_forward(model: Any, settings: LossSettings, *, padding_free: bool = False) -> Any:
    """The same model object, with its class extended by `DistillationForward` under the stock name.

    Args:
        model: a transformers model.
        settings: settings of the loss.
        padding_free: compute each micro-batch as one row, without padding.
    """
    stock = type(model)
    model.__class__ = type(stock.__name__, (DistillationForward, stock), {"__module__": stock.__module__})
    model.loss_settings = settings
    model.padding_free = padding_free
    return model


def save_student(model: Any, processor: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a directory that `from_pretrained` loads: weights rounded to `dtype`, configuration, processor.

    Adapters are merged into the weights, and also written to `adapter/`.
    """
    save_weights(stock_model(model), directory, dtype, plain_state(model))
    processor.save_pretrained(directory)
    save_adapter(model, directory / "adapter")
