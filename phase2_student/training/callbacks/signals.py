"""SIGTERM and Ctrl-C during training: the current step is finished and saved, then training ends."""

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
"""A second signal within these seconds is the first one, passed on by a launcher although the terminal has sent it already."""


class StopOnSignal(TrainerCallback):
    """Catches SIGTERM and SIGINT within a `with` block. A second SIGINT ends the process at once.

    Several processes stop at the same step, whichever of them received the signal: `finite.StepGuard` asks all in every step.

    Args:
        processes: number of processes that train together.
        main: this process prints messages.
    """

    def __init__(self, *, processes: int, main: bool = True) -> None:
        self.received: int | None = None
        """The number of the signal that this process received."""
        self.due: int | None = None
        """The number of the signal for which training stops after the current step."""
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
        """Save and stop, if a signal asks for it."""
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
                # not print: the handler may interrupt a print
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _WORDS)
            self._interrupted = True
        if self.received is None:
            self.received, self._first = number, now


_WORDS = b"\nCtrl-C: finishing the step and saving a checkpoint; press Ctrl-C again to stop at once, without one.\n"


def leave_interrupts_to_the_main_process(_worker: int) -> None:
    """Let workers of a loader ignore Ctrl-C: a terminal sends it to them as well, and the last step still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
