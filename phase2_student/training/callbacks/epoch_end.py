"""The end of an epoch: first the validation, then the checkpoint, so that a run that resumes there has both."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from phase2_student.training.callbacks.signals import StopOnSignal


class EpochEnd(TrainerCallback):  # type: ignore[misc]
    """Saves the last step of an epoch after its validation; does not validate if a signal cuts an epoch short.

    The stock trainer saves in the step and validates afterwards: if the run were killed in between, the validation would be missing.

    Args:
        stop: says whether a signal was received; its own callback runs before this one.
    """

    def __init__(self, stop: StopOnSignal) -> None:
        self._stop = stop
        self._save = False

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """If the epoch ends with this step, put the checkpoint off until then."""
        self._save = False
        if _at_end(state):
            self._save, control.should_save = control.should_save, False

    def on_epoch_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the checkpoint that was put off."""
        if self._stop.due is not None and not _at_end(state):
            control.should_evaluate = control.should_save = control.should_log = False
        if any(entry.get("step") == state.global_step and "eval_loss" in entry for entry in state.log_history[-2:]):
            control.should_evaluate = False  # for a run that continues from its last step
        control.should_save |= self._save
        self._save = False


def _at_end(state: Any) -> bool:
    return bool(state.global_step >= state.max_steps or abs(state.epoch - round(state.epoch)) < 1e-9)
