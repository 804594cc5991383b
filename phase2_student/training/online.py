"""Online training: the teacher stays in memory and gives its whole distribution, batch by batch.

The reference for what a cache keeps, and a feature where the teacher is small. Same trainer, order, seeds and loss weights
as on a cache; only the targets differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from firstsight.errors import TargetError
from firstsight.models import backbone_states, load_teacher
from firstsight.pair import Pair
from firstsight.recipe import TeacherSection
from firstsight.teacher_head import TeacherHead
from phase2_student.training.trainer import DistillationTrainer

# N answer positions, M of them with soft targets, D hidden size of the teacher


class OnlineTeacher:
    """The frozen teacher on the device that the student trains on.

    Args:
        pair: of teacher and student.
        section: of the recipe; its `device_map` is kept.
        device: where the student trains.
    """

    def __init__(self, pair: Pair, section: TeacherSection, device: torch.device) -> None:
        if section.device_map is None:
            section = section.model_copy(update={"device_map": str(device)})
        self.model = load_teacher(pair.directory, section)
        head = self.model.get_output_embeddings()
        self.head = TeacherHead(head.weight, getattr(head, "bias", None), pair.alignment)

    @torch.no_grad()
    def states(self, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor, soft_N: Tensor) -> Tensor:
        """[N, D] hidden states of the teacher at the student's answer positions; zeros where there is no soft target.

        Args:
            inputs: of the teacher.
            rows: int64 [M], its answer positions.
            columns: int64 [M], likewise.
            soft_N: bool: which of the student's answer positions they are.

        Raises:
            TargetError: states that are not finite.
        """
        width = self.head.head_VD.shape[1]
        states_ND = torch.zeros((len(soft_N), width), device=self.head.device)
        if len(rows):
            moved = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            found_MD = backbone_states(self.model, moved, rows, columns).to(states_ND)
            if not found_MD.isfinite().all():
                raise TargetError("the teacher's hidden states are not finite; try teacher.dtype: bfloat16")
            states_ND[soft_N.to(states_ND.device)] = found_MD
        return states_ND


class OnlineTrainer(DistillationTrainer):
    """Runs the teacher over each batch of `online_data.OnlineCollator` before the student sees it."""

    def __init__(self, *args: Any, teacher: OnlineTeacher, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The stock ones, with the teacher's states in place of its inputs."""
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        rows, columns = prepared.pop("teacher_rows"), prepared.pop("teacher_columns")
        prepared["teacher_states"] = self.teacher.states(
            prepared.pop("teacher_inputs"), rows, columns, prepared["soft"]
        )
        return prepared
