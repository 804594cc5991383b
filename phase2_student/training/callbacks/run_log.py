"""`run.log` in the directory of a run, one line per event; and where there is no terminal, a line a minute that it is alive."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback

from firstsight.console import HEARTBEAT, Heartbeat
from firstsight.secrets import masked_text
from phase2_student.runs.lock import RunLock
from storage.wording import counted

_SHOWN = ("loss", "kd", "ce", "agreement", "learning_rate", "grad_norm", "data_wait")


class RunLog(TrainerCallback):  # type: ignore[misc]
    """Adds lines to `run.log`: begin and end of every call, steps that are logged, validations, checkpoints, heartbeats.

    Args:
        output_dir: of the run.
        first: what the call is about.
        lock: of the directory; the training stops where another process took it over. None: this process does not hold it.
        main: this process writes.
    """

    def __init__(self, output_dir: Path, first: str, *, lock: RunLock | None = None, main: bool) -> None:
        self._path = output_dir / "run.log"
        self._first = first
        self._main = main
        self._lock = lock
        self._last: dict[str, float] = {}
        self._beats: Heartbeat | None = None

    def __enter__(self) -> RunLog:
        self.write(self._first)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and kind is not None:
            self.write(f"failed: {kind.__name__}: {' '.join(str(error).split())}")

    def write(self, line: str) -> None:
        """Add a line with the time in front of it."""
        if self._main:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}  {masked_text(line)}\n")

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The first step, or the one that a checkpoint leads to."""
        done = state.global_step
        self.write(
            f"{'continues after step ' + format(done, ',') if done else 'begins'}, {counted(state.max_steps, 'step')} in all"
        )
        self._beats = Heartbeat(state.max_steps, unit="step", done=done, seconds=HEARTBEAT) if self._main else None

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """A sign of life, if it is time."""
        if self._lock is not None:
            self._lock.check()
        if self._beats is not None and (line := self._beats.beat(state.global_step, self._last)):
            self.write(line)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Steps that are logged; validations have their own line."""
        if logs and "loss" in logs:
            self._last = {name: float(logs[name]) for name in _SHOWN if name in logs}
            self.write(
                f"step {state.global_step:,}: " + ", ".join(f"{name} {each:.5g}" for name, each in self._last.items())
            )

    def on_evaluate(
        self, _args: Any, state: Any, _control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """A validation."""
        shown = [f"{name} {metrics[f'eval_{name}']:.5g}" for name in _SHOWN if metrics and f"eval_{name}" in metrics]
        self.write(f"step {state.global_step:,}: validation {', '.join(shown)}")

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """A checkpoint."""
        self.write(f"step {state.global_step:,}: checkpoint saved")

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The last step of this call."""
        self.write(f"{'ends' if state.global_step >= state.max_steps else 'stops'} after step {state.global_step:,}")
