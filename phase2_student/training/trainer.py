"""`transformers.Trainer` with the distillation loss: token-exact means, KD and CE logged apart, exact evaluation.

The samples of a step do not depend on the number of processes (`data/order.py`), a checkpoint is sealed once it is whole
(`checkpointing.py`), and a step that is not finite stops the run (`finite.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from phase2_student.data.batch import Batch
from phase2_student.loss.objective import LossTerms
from phase2_student.training.callbacks.history import HistoryCallback
from phase2_student.training.callbacks.signals import StopOnSignal
from phase2_student.training.checkpointing import SealingTrainer
from phase2_student.training.finite import StepGuard
from phase2_student.training.loaders import (
    EpochOfBatches,
    checked_batch,
    data_loader,
    train_batches,
    validation_batches,
)
from phase2_student.training.step_figures import StepFigures


class DistillationTrainer(SealingTrainer):
    """Trains a model with `student.DistillationForward` on batches of a `source.TargetSource`.

    Args:
        args: of `transformers.Trainer`.
        complete: of the source: brings a batch to the device, ready for the loss.
        history: one of the callbacks: is handed the figures of the steps, and kept in checkpoints; None: only logs have them.
        stop: another one: several processes agree on its signals.
        kwargs: of `transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        complete: Callable[[Any], Batch[Any]],
        history: HistoryCallback | None = None,
        stop: StopOnSignal | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.complete = complete
        # set, not detected: detection differs by model class
        self.model_accepts_loss_kwargs = True
        self._guard = StepGuard(Path(self.args.output_dir), self.accelerator, stop)
        self._objective = self.accelerator.unwrap_model(self.model).loss_settings.objective
        self._figures = StepFigures(self._objective, self._reduced)
        self._history = history
        if history is not None:
            history.figures = self._figures
        # in front of the others, which log and write
        self.callback_handler.callbacks.insert(0, _EndStep(self._guard, self._figures))
        self.add_callback(self._guard)

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process."""
        batches = train_batches(self.train_dataset, self.args)
        loader = data_loader(self.train_dataset, batches, self.data_collator, self.args)
        self.add_callback(EpochOfBatches(batches, -(-len(loader) // self.args.gradient_accumulation_steps)))
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Each sample once over all processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return data_loader(dataset, validation_batches(dataset, self.args), self.data_collator, self.args)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The stock one; how long the loop waits for it is what `data_wait` reports.

        The stock loop takes a step before it asks whether there is one left: of a run that continues from its last step there is none.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        begin = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self._figures.waited(time.perf_counter() - begin)
        return batches

    def _get_num_items_in_batch(self, batch_samples: list[Batch[Any]], device: torch.device) -> Tensor | None:
        """Answer positions of the whole accumulated batch over all ranks, soft or hard.

        The stock count is of labels: samples without ground truth would vanish from the mean.
        """
        if not batch_samples:
            return None
        positions = sum(checked_batch(batch).counted() for batch in batch_samples)
        count = torch.full((), positions, dtype=torch.int64, device=device)  # a copy would wait for the step before
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def _prepare_inputs(self, inputs: Batch[Any]) -> Batch[Any]:
        """The batch on the device, ready for the loss."""
        batch = self.complete(inputs)
        if self.is_deepspeed_enabled:  # which wants the model's inputs in its own dtype
            batch = replace(batch, inputs=self._prepare_input(batch.inputs))
        return batch

    def floating_point_ops(self, inputs: Batch[Any]) -> int:
        """The stock estimate."""
        operations: int = super().floating_point_ops(inputs.inputs)
        return operations

    def _track_num_input_tokens(self, inputs: Batch[Any]) -> None:
        super()._track_num_input_tokens(inputs.inputs)

    # ---- a step ----

    def compute_loss(
        self,
        model: Any,
        inputs: Batch[Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch as its share of the accumulated batch's mean."""
        num_items = max(1, inputs.counted()) if num_items_in_batch is None else num_items_in_batch
        loss, terms = model(batch=inputs, num_items=num_items)
        self._guard.add(loss, inputs.names)
        self._figures.add(terms, inputs.inputs["attention_mask"].sum())
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        return (loss, terms) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The stock one, which the loop asks for before every step; the guard need not compute it again."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._guard.add_norm(norm)
        return norm

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the stock log the parts of the loss, the agreement with the teacher, tokens per second and `data_wait`, the
        share of the time that the loop waited for data: means over the steps since the log before.
        """
        if "loss" in logs:
            means = self._figures.end_window().means(self.args.world_size)
            logs.update({name: value for name, value in means.items() if name not in ("loss", "grad_norm")})
        super().log(logs, start_time)

    def _reduced(self, sums: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return sums
        precise = torch.float32 if self.args.device.type == "mps" else torch.float64
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device, precise), "sum").double().cpu()
        return reduced

    # ---- checkpoints ----

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._figures.settle()
        super()._save_checkpoint(*args, **kwargs)

    def write_state(self, directory: Path) -> None:
        """The epochs so far."""
        if self._history is not None:
            self._history.write_state(directory)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """The stock method; the history continues, too."""
        if self._history is not None and resume_from_checkpoint is not None:
            self._history.read_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # ---- validation ----

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sums and counts over the whole set: the stock loop averages batch means."""
        del description, prediction_loss_only, ignore_keys  # the stock loop's
        begin = time.perf_counter()
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        model.eval()
        sums = torch.zeros(len(LossTerms._fields), dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            prepared = self._prepare_inputs(checked_batch(batch))
            with self.compute_loss_context_manager():
                _, terms = model(batch=prepared, num_items=1)
            sums += torch.stack(list(terms))  # on the device: the host does not wait for each batch
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        means = self._objective.means(LossTerms(*self._reduced(sums.cpu())), training=False)
        self._figures.leave_out(time.perf_counter() - begin)  # tokens per second are those of training
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in means.items()},
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )


class _EndStep(TrainerCallback):  # type: ignore[misc]
    """Tells the figures that a step ended."""

    def __init__(self, guard: StepGuard, figures: StepFigures) -> None:
        self._guard = guard
        self._figures = figures

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """After the optimiser."""
        self._figures.end_step(self._guard.norm)
