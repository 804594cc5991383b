"""The student in training: the stock model whose `forward` also computes the fused loss; and how it is saved.

The loss is inside `forward`, so that DDP and FSDP see it. The class keeps its stock name: what is saved loads in plain
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstsight.models import backbone_states, save_weights
from firstsight.teacher_head import TeacherHead
from phase2_student.loss import AnswerTargets, LossTargets, LossTerms, TailMode, TeacherTargets, distillation_loss
from phase2_student.packing import packed_states
from phase2_student.weights import plain_state, save_adapter, stock_model


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What `forward` needs to know of the loss."""

    temperature: float
    alpha: float
    tail: TailMode
    unshared_ids: Tensor
    """int64 [U]: rows of the head that the teacher's vocabulary does not have."""
    teacher_head: TeacherHead | None = None
    """Where batches bring the teacher's states in place of stored targets."""


class DistillationForward:
    """Mixed in front of a model class: with `target_ids` among the inputs, `forward` returns the loss and its parts."""

    loss_settings: LossSettings
    padding_free: bool = False

    def forward(self, *args: Any, target_ids: Tensor | None = None, **inputs: Any) -> Any:
        """The stock forward; or, for a batch of `dataset.Collator` or `online.OnlineTrainer`, `(loss, LossTerms)`."""
        if target_ids is None:
            return super().forward(*args, **inputs)  # type: ignore[misc]
        targets = self._targets(target_ids, inputs)
        num_items = inputs.pop("num_items")
        rows, columns = inputs.pop("answer_rows"), inputs.pop("answer_columns")
        states = (packed_states if self.padding_free else backbone_states)(self, inputs, rows, columns)
        settings = self.loss_settings
        if settings.unshared_ids.device != states.device:  # once: a copy from the host waits for the backbone
            settings = replace(settings, unshared_ids=settings.unshared_ids.to(states.device))
            self.loss_settings = settings
        head: Any = self
        return distillation_loss(
            states,
            head.get_output_embeddings().weight,
            targets,
            unshared_ids=settings.unshared_ids,
            temperature=settings.temperature,
            alpha=settings.alpha,
            num_items=num_items,
            tail=settings.tail,
        )

    def _targets(self, target_ids: Tensor, inputs: dict[str, Any]) -> LossTargets:
        """The targets of a batch, taken out of its inputs."""
        head = self.loss_settings.teacher_head
        if head is None:
            return AnswerTargets.taken_from(inputs, target_ids)
        return TeacherTargets(
            states_ND=inputs.pop("teacher_states"),
            head=head,
            target_ids_N=target_ids,
            soft_N=inputs.pop("soft"),
            hard_N=inputs.pop("hard"),
        )


def with_distillation_forward(model: Any, settings: LossSettings, *, padding_free: bool = False) -> Any:
    """The same model object, its class extended by `DistillationForward` under the stock name.

    Args:
        model: of transformers.
        settings: of the loss.
        padding_free: compute micro-batches as one row each, without padding.
    """
    stock = type(model)
    model.__class__ = type(stock.__name__, (DistillationForward, stock), {"__module__": stock.__module__})
    model.loss_settings = settings
    model.padding_free = padding_free
    return model


def save_student(model: Any, processor: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a directory that `from_pretrained` loads: weights rounded to `dtype`, configuration, processor.

    Adapters are merged into the weights, and lie in `adapter/` as well.
    """
    save_weights(stock_model(model), directory, dtype, plain_state(model))
    processor.save_pretrained(directory)
    save_adapter(model, directory / "adapter")


__all__ = ["DistillationForward", "LossSettings", "LossTerms", "save_student", "with_distillation_forward"]
