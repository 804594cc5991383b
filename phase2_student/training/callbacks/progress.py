"""The progress of a training run in a terminal: a bar with the latest loss, and one line per validation."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from phase2_student.training.arguments import warmup_note

_SHOWN = {"loss": "loss", "kd": "KD", "ce": "CE", "agreement": "agreement", "kl": "KL"}


class Bar(ProgressCallback):  # type: ignore[misc]
    """The stock bar, with the latest figures after it instead of a line for each log."""

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show a log of training; validations have their own lines."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix({_SHOWN[name]: f"{logs[name]:.3g}" for name in _SHOWN if name in logs})


class ValidationLines(TrainerCallback):  # type: ignore[misc]
    """One line per validation: epoch, step, and the parts of the loss; before them, what a warm-up would leave of the training."""

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Print the note on warm-up."""
        if state.is_world_process_zero and (note := warmup_note(args, state.max_steps)):
            tqdm.write(note)

    def on_evaluate(
        self, _args: Any, state: Any, _control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Print a line after a validation."""
        if state.is_world_process_zero and metrics:
            parts = [f"{_SHOWN[name]} {metrics[f'eval_{name}']:.4f}" for name in _SHOWN if f"eval_{name}" in metrics]
            epoch = (
                f"epoch {state.epoch:.3g} of {state.num_train_epochs:g}" if state.epoch is not None else "validation"
            )
            tqdm.write(f"{epoch}, step {state.global_step:,}: validation {', '.join(parts)}")
