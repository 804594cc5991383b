"""The check before each step: a loss or gradient that is not finite stops the run; all processes agree whether a signal stops it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from firstsight.errors import TrainingError
from phase2_student.runs.checkpoints import SEAL, checkpoints
from phase2_student.training.callbacks.signals import CAUGHT, StopOnSignal

_NAMED = 8
"""Number of samples that are listed."""


class StepGuard(TrainerCallback):
    """Collects the losses of a step's micro-batches and the norm of its gradient, and checks them before the step is taken.

    Args:
        output_dir: the run's directory.
        accelerator: accelerate's; all its processes stop together.
        stop: the callback for signals; None: no signals are caught.
    """

    def __init__(self, output_dir: Path, accelerator: Any, stop: StopOnSignal | None = None) -> None:
        self.output_dir = output_dir
        self.accelerator = accelerator
        self.norm: float | None = None
        """Norm of the last step's gradient, before it was clipped; None in float16, where the gradient is scaled."""
        self._stop = stop
        self._losses: list[Tensor] = []
        self._names: list[tuple[str, ...]] = []
        self._norm: Tensor | float | None = None

    def add(self, loss: Tensor, names: tuple[str, ...]) -> None:
        """Add a micro-batch of the step.

        Args:
            loss: a scalar, on its device.
            names: the names of its samples.
        """
        self._losses.append(loss.detach())
        self._names.append(names)

    def add_norm(self, norm: Tensor | float | None) -> None:
        """Keep the norm of the step's gradient over all weights and processes, before it was clipped."""
        self._norm = norm

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        """Check the step; the host waits for the device once.

        Raises:
            TrainingError: a loss or the gradient is not finite, in any process.
        """
        if self._norm is None and self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            self._norm = self.accelerator.clip_grad_norm_(model.parameters(), math.inf)
        losses, self._losses = self._losses, []
        names, self._names = self._names, []
        norm, self._norm = self._norm, None
        if getattr(self.accelerator, "scaler", None) is not None:
            norm = None  # in float16 the scaler skips a step with too large a gradient, and scales the next one down
        if isinstance(norm, DTensor):  # sharded weights
            norm = norm.full_tensor()
        values = torch.stack(losses).float()
        known = norm is not None
        norm = torch.zeros_like(values[0]) if norm is None else torch.as_tensor(norm).to(values)
        bad = ~(values.isfinite().all() & norm.isfinite())
        if self.accelerator.num_processes > 1:
            received = [self._stop is not None and self._stop.received == number for number in CAUGHT]
            flags = torch.cat([bad.float()[None], torch.tensor(received, dtype=torch.float32, device=bad.device)])
            some = (self.accelerator.reduce(flags, "sum") > 0).tolist()
            bad = some[0]
            if self._stop is not None:
                self._stop.due = next((number for number, told in zip(CAUGHT, some[1:], strict=True) if told), None)
        if bool(bad):
            raise TrainingError(self._text(state.global_step + 1, values.tolist(), float(norm), names))
        self.norm = float(norm) if known else None

    def _text(self, step: int, losses: Sequence[float], norm: float, names: Sequence[tuple[str, ...]]) -> str:
        found = list(zip(losses, names, strict=True))
        if self.accelerator.num_processes > 1:
            found = gather_object(found)
        wrong = [pair for pair in found if not math.isfinite(pair[0])]
        samples = list(dict.fromkeys(name for _, group in (wrong or found) for name in group))
        listed = ", ".join(samples[:_NAMED]) + (f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else "")
        what = f"the loss is {wrong[0][0]}" if wrong else f"the norm of the gradient is {norm}"
        whole = next((path for path in checkpoints(self.output_dir) if (path / SEAL).is_file()), None)
        before = (
            f"the last complete checkpoint is {whole}, and the same command continues from it"
            if whole is not None
            else "there is no checkpoint yet"
        )
        return (
            f"step {step:,}: {what} on samples {listed}; the step was not taken, and training stopped: {before}. If it stops "
            "here again, check these samples, or start a run with a lower training.learning_rate"
        )
