"""SIGTERM and Ctrl-C while a training runs: the step is finished and saved, and the training ends."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from transformers import TrainerCallback

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """Catches SIGTERM and SIGINT between `with` and its end; for one process. A second SIGINT ends the process at once.

    With several, they would stop at different steps; there the checkpoints of `save_steps` must do.
    """

    def __init__(self, *, processes: int) -> None:
        self.received: int | None = None
        """The number of the signal."""
        self._alone = processes == 1

    def __enter__(self) -> StopOnSignal:
        if self._alone:
            self._before = {number: signal.signal(number, self._receive) for number in _CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if asked to."""
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                os._exit(128 + number)
            # not print: a handler may interrupt one
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _WORDS)
        self.received = number


_WORDS = b"\nCtrl-C: the step is finished and a checkpoint saved; Ctrl-C again stops at once, without.\n"


def leave_interrupts_to_the_main_process(_worker: int) -> None:
    """For workers of a loader: a terminal sends Ctrl-C to them as well, and the last steps still need them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
