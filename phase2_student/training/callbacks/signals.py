"""SIGTERM and Ctrl-C while a training runs: the step is finished and saved, and the training ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback

CAUGHT = (signal.SIGINT, signal.SIGTERM)
_FORWARDED = 3.0
"""Seconds in which a second signal is the first one, passed on by a launcher to processes that the terminal told already."""


class StopOnSignal(TrainerCallback):
    """Catches SIGTERM and SIGINT between `with` and its end. A second SIGINT ends the process at once.

    Several processes stop at the same step, whichever of them a signal has reached: `finite.StepGuard` asks all in every step.

    Args:
        processes: number of processes that train together.
        main: this process speaks.
    """

    def __init__(self, *, processes: int, main: bool = True) -> None:
        self.received: int | None = None
        """The number of the signal that this process received."""
        self.due: int | None = None
        """The number of the signal for which the training stops after the step that it is in."""
        self._alone = processes == 1
        self._main = main
        self._first = -_FORWARDED
        self._interrupted = False

    def __enter__(self) -> StopOnSignal:
        self._before = {number: signal.signal(number, self._receive) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if asked to."""
        if self._alone:
            self.due = self.received
        if self.due is not None:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            passed_on = not self._alone and now - self._first < _FORWARDED
            if self._interrupted and not passed_on:
                os._exit(128 + number)
            if self._main and not self._interrupted:
                # not print: a handler may interrupt one
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _WORDS)
            self._interrupted = True
        if self.received is None:
            self.received, self._first = number, now


_WORDS = b"\nCtrl-C: the step is finished and a checkpoint saved; Ctrl-C again stops at once, without.\n"


def leave_interrupts_to_the_main_process(_worker: int) -> None:
    """For workers of a loader: a terminal sends Ctrl-C to them as well, and the last steps still need them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
