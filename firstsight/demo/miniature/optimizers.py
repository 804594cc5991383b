"""Muon for the matrices inside layers, AdamW for the rest; linear warm-up, then half a cosine."""

import math
from collections.abc import Iterable

import torch


class Optimizers:
    """Both optimisers and their schedules as one.

    Args:
        named: parameters with their names in the model; those of a separate module count as outside layers.
        learning_rate: AdamW's peak; Muon's update has the same root mean square (`match_rms_adamw`).
        steps: number of steps of the whole run.
        warm_up: number of warm-up steps.
    """

    def __init__(
        self, named: Iterable[tuple[str, torch.nn.Parameter]], *, learning_rate: float, steps: int, warm_up: int
    ) -> None:
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in named:
            inside = parameter.ndim == 2 and any(part in name for part in ("layers.", "blocks.", "merger."))
            (matrices if inside else others).append(parameter)
        self._parameters = [*matrices, *others]
        self._optimizers = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

        def share(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

        self._schedules = [torch.optim.lr_scheduler.LambdaLR(each, share) for each in self._optimizers]

    def step(self, loss: torch.Tensor) -> None:
        """Backward, gradients clipped to norm 1, and one update."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
