"""`transformers.Trainer` with the distillation loss: token-exact means, KD and CE logged apart, exact evaluation.

The samples of a step do not depend on the number of processes (`batches.py`), and a checkpoint is sealed once it is whole
(`resume.py`).
"""

from __future__ import annotations

import errno
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from phase2_student.batches import GlobalBatches
from phase2_student.loss import LossTerms
from phase2_student.resume import keep_newest, seal
from phase2_student.student import LossSettings


class DistillationTrainer(Trainer):
    """Trains a model with `student.DistillationForward` on batches of `dataset.Collator`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # set, not detected: detection differs by model class
        self.model_accepts_loss_kwargs = True
        # checkpoints are deleted here, after the new one is sealed
        self._keep = self.args.save_total_limit
        self.args.save_total_limit = None
        self._restart_clock()
        self._logged = self._since

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process."""
        args = self.args
        grouped = args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        batches = GlobalBatches(
            self.train_dataset.lengths() if grouped else [0] * len(self.train_dataset),
            batch_size=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            rank=args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy != "sequential",
            group=grouped,
        )
        # not prepared by accelerate, which would deal the micro-batches once more
        loader = self._loader(self.train_dataset, batches)
        self.add_callback(_Epochs(batches, -(-len(loader) // args.gradient_accumulation_steps)))
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Samples of like length together; each of them counts once over all processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = GlobalBatches(
            dataset.lengths(),
            batch_size=self.args.per_device_eval_batch_size,
            processes=self.args.world_size,
            rank=self.args.process_index,
            shuffle=False,
        )
        return self._loader(dataset, batches)

    def _loader(self, dataset: Any, batches: GlobalBatches) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The stock one; how long the loop waits for it is what `data_wait` reports."""
        begin = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - begin
        return batches

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Answer positions of the whole accumulated batch over all ranks, soft or hard.

        The stock count is of labels: samples without ground truth would vanish from the mean.
        """
        if not batch_samples:
            return None
        positions = sum(_positions(batch) for batch in batch_samples)
        count = torch.full((), positions, dtype=torch.int64, device=device)  # a copy would wait for the step before
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def _prepare_input(self, data: Any) -> Any:
        """The stock one; what the loader pinned is copied while the device still works on the batch before."""
        if (
            isinstance(data, Tensor)
            and data.device.type == "cpu"
            and data.is_pinned()
            and not self.is_deepspeed_enabled
        ):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch as its share of the accumulated batch's mean."""
        num_items = max(1, _positions(inputs)) if num_items_in_batch is None else num_items_in_batch
        loss, terms = model(**inputs, num_items=num_items)
        self._terms.append(torch.stack(list(terms)))
        self._tokens.append(inputs["attention_mask"].sum())  # summed when they are logged: no waiting for the device
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the stock log the parts of the loss, the agreement with the teacher, tokens per second, `data_wait`, the
        share of the time that the loop waited for data, and `seconds` since the entry before.
        """
        now = time.perf_counter()
        logs["seconds"], self._logged = now - self._logged, now
        if "loss" in logs:
            sums = self._reduced(torch.stack(self._terms).double().sum(dim=0))
            logs.update(_means(sums, prefix="", with_kd=self._settings.alpha > 0))
            tokens = int(torch.stack(self._tokens).sum())
            logs["tokens_per_second"] = tokens * self.args.world_size / (now - self._since)
            logs["data_wait"] = self._waited / (now - self._since)
            self._restart_clock()
        super().log(logs, start_time)

    @property
    def _settings(self) -> LossSettings:
        settings: LossSettings = self.accelerator.unwrap_model(self.model).loss_settings
        return settings

    def _restart_clock(self) -> None:
        self._terms: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._waited, self._since = 0.0, time.perf_counter()

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
        begin = time.perf_counter()
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        model.eval()
        sums = torch.zeros(len(LossTerms._fields), dtype=torch.float64, device=self.args.device)
        positions = torch.zeros((), dtype=torch.float64)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                _, terms = model(**inputs, num_items=1)
            sums += torch.stack(list(terms))  # on the device: the host does not wait for each batch
            positions += _positions(batch)
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums, positions = self._reduced(sums.cpu()), self._reduced(positions)
        settings = self._settings
        kd, ce = float(sums[0]), float(sums[1])
        loss = (settings.alpha * kd + (1 - settings.alpha) * ce) / max(1.0, float(positions))
        metrics = {f"{metric_key_prefix}_loss": loss, **_means(sums, prefix=f"{metric_key_prefix}_")}
        self._since += time.perf_counter() - begin  # tokens per second are those of training
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics=metrics,
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )

    def _reduced(self, sums: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return sums
        precise = torch.float32 if self.args.device.type == "mps" else torch.float64
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device, precise), "sum").double().cpu()
        return reduced

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The stock checkpoint; then its seal, and only then the old ones go."""
        directory = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)  # what an interrupted run left
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(directory)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _disk_is_full(error):
                raise
            shutil.rmtree(directory, ignore_errors=True)
            raise OSError(
                errno.ENOSPC,
                f"no space left for a checkpoint; the ones before it are whole: free some space and run the same command again "
                f"(training.save_total_limit is {self._keep})",
                str(directory),
            ) from error
        if self.args.should_save and self._keep is not None:
            keep_newest(directory.parent, max(1, self._keep))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every weight, or an error.

        The stock method looks for the module's own names in a file that has the names of the hub, finds none of them, and
        goes on from the base weights with a warning.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        loaded, report = type(model).from_pretrained(
            resume_from_checkpoint, dtype=next(model.parameters()).dtype, output_loading_info=True
        )
        if report["missing_keys"] or report["unexpected_keys"]:
            names = sorted([*report["missing_keys"], *report["unexpected_keys"]])
            raise RuntimeError(f"{resume_from_checkpoint}: not the weights of this model: {', '.join(names[:3])}, ...")
        model.load_state_dict(loaded.state_dict())


class StopOnSignal(TrainerCallback):
    """On SIGTERM the step at hand is finished and saved, and the training ends; for one process.

    With several, they would stop at different steps; there the checkpoints of `save_steps` must do.
    """

    def __init__(self) -> None:
        self.received = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Catch the signal."""
        if args.world_size == 1:
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the signal as it was."""
        if args.world_size == 1:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if asked to."""
        if self.received:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True


class _Epochs(TrainerCallback):
    """Tells the batches their epoch, also when training goes on in the middle of one."""

    def __init__(self, batches: GlobalBatches, steps_per_epoch: int) -> None:
        self.batches = batches
        self.steps_per_epoch = max(1, steps_per_epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the loader is asked for its first batch."""
        self.batches.set_epoch(state.global_step // self.steps_per_epoch)


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch and safetensors wrap what the system said
    return any(sign in str(error) for sign in ("No space left", "os error 28", "file write failed", "unexpected pos"))


def _positions(batch: dict[str, Any]) -> int:
    """N of the loss: answer positions with a soft target or a hard label."""
    return int((batch["soft"] | batch["hard"]).sum())


def _means(sums: Tensor, prefix: str, *, with_kd: bool = True) -> dict[str, float]:
    """Without KD where it was not computed: in training with alpha = 0."""
    kd, ce, agree, soft, hard = sums.tolist()
    means = {"kd": kd / max(1.0, soft), "ce": ce / max(1.0, hard), "agreement": agree / max(1.0, soft)}
    return {f"{prefix}{name}": value for name, value in means.items() if with_kd or name != "kd"}
