"""`transformers.Trainer` with the distillation loss: token-exact means, KD and CE logged apart, exact evaluation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from phase2_student.loss import LossTerms


class DistillationTrainer(Trainer):
    """Trains a model with `student.DistillationForward` on batches of `dataset.Collator`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # set, not detected: detection differs by model class
        self.model_accepts_loss_kwargs = True
        self._sums = torch.zeros(len(LossTerms._fields), dtype=torch.float64)
        self._positions = 0
        self._since = time.perf_counter()

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Answer positions of the whole accumulated batch over all ranks, soft or hard.

        The stock count is of labels: samples without ground truth would vanish from the mean.
        """
        if not batch_samples:
            return None
        count = torch.tensor(sum(len(batch["target_ids"]) for batch in batch_samples), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch as its share of the accumulated batch's mean."""
        num_items = len(inputs["target_ids"]) if num_items_in_batch is None else num_items_in_batch
        loss, terms = model(**inputs, num_items=num_items)
        self._sums += torch.stack(list(terms)).double().cpu()
        self._positions += int(inputs["attention_mask"].sum())
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, the agreement with the teacher and the speed to the stock log."""
        if "loss" in logs:
            logs.update(_means(self._reduced(self._sums), prefix=""))
            now = time.perf_counter()
            logs["tokens_per_second"] = self._positions * self.args.world_size / (now - self._since)
            self._sums.zero_()
            self._positions, self._since = 0, now
        super().log(logs, start_time)

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
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        model.eval()
        sums = torch.zeros(len(LossTerms._fields), dtype=torch.float64)
        positions = torch.zeros((), dtype=torch.float64)
        samples = 0
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                _, terms = model(**inputs, num_items=1)
            sums += torch.stack(list(terms)).double().cpu()
            positions += len(inputs["target_ids"])
            samples += len(inputs["input_ids"])
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums, positions = self._reduced(sums), self._reduced(positions)
        settings = self.model.loss_settings
        kd, ce = float(sums[0]), float(sums[1])
        loss = (settings.alpha * kd + (1 - settings.alpha) * ce) / max(1.0, float(positions))
        metrics = {f"{metric_key_prefix}_loss": loss, **_means(sums, prefix=f"{metric_key_prefix}_")}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=samples)

    def _reduced(self, sums: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return sums
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device, torch.float32), "sum").double().cpu()
        return reduced


def _means(sums: Tensor, prefix: str) -> dict[str, float]:
    kd, ce, agree, soft, hard = sums.tolist()
    return {
        f"{prefix}kd": kd / max(1.0, soft),
        f"{prefix}ce": ce / max(1.0, hard),
        f"{prefix}agreement": agree / max(1.0, soft),
    }
