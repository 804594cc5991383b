"""SIGTERM while a training runs: the step is finished and saved, and the training ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Catches SIGTERM between `with` and its end; for one process.

    With several, they would stop at different steps; there the checkpoints of `save_steps` must do.
    """

    def __init__(self, *, processes: int) -> None:
        self.received = False
        self._alone = processes == 1

    def __enter__(self) -> StopOnSignal:
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if asked to."""
        if self.received:
            control.should_save = control.should_training_stop = True

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
