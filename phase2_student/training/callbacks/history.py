"""Writes `training_history.json` during training, and `best/` by validation loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from phase2_student.runs.best import best_loss
from phase2_student.runs.files import replace_directory, write_json
from phase2_student.runs.history import HISTORY
from phase2_student.training.step_figures import StepFigures, Sums

_TRAIN = ("loss", "kd", "ce", "agreement", "grad_norm", "tokens_per_second", "data_wait")
_VALIDATION = ("loss", "kd", "ce", "agreement", "kl")
_EVERY = 60.0
"""Seconds between writing logged steps; validations and ends of epochs are written at once."""
_STATE = "history.json"
"""File in a checkpoint: the epochs so far, and the sums of the current one."""


def history_rows(
    log: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]], objective: str
) -> list[dict[str, Any]]:
    """The entries of `training_history.json`.

    Args:
        log: `TrainerState.log_history`.
        epochs: the measurements of each epoch: `epoch`, `step`, `steps`, `seconds`, `train`.
        objective: the objective of `loss` and `kd`, in words.
    """
    rows = {row["epoch"]: {**row, "logged": [], "validations": []} for row in epochs}
    for entry in log:
        kind = "logged" if "loss" in entry else "validations" if "eval_loss" in entry else None
        if kind is None or "epoch" not in entry:
            continue
        number = epoch_of(entry["epoch"])
        row = rows.setdefault(
            number,
            # the checkpoint does not record its epochs: `steps` is not known, and the means are those of the logged steps
            {"epoch": number, "step": 0, "steps": None, "seconds": 0.0, "train": None, "logged": [], "validations": []},
        )
        own = entry
        if kind == "validations":
            own = {name: entry[f"eval_{name}"] for name in _VALIDATION if f"eval_{name}" in entry}
        row[kind].append({"epoch": entry["epoch"], "step": entry["step"], **own})
        row["step"] = max(row["step"], entry["step"])
        if row["steps"] is None:
            row["seconds"] += entry.get("seconds", 0.0)
    for row in rows.values():
        logged, last = row["logged"], row["validations"][-1] if row["validations"] else None
        if row["train"] is None:
            names = [name for name in _TRAIN if logged and name in logged[0]]
            row["train"] = {name: sum(entry[name] for entry in logged) / len(logged) for name in names}
        row["learning_rate"] = logged[-1].get("learning_rate") if logged else None
        row["objective"] = objective
        row["validation"] = last and {name: last[name] for name in _VALIDATION if name in last}
    return [rows[number] for number in sorted(rows)]


def epoch_of(epoch: float) -> int:
    """The number, counted from 1, of the epoch that ends at `epoch` or contains it."""
    return max(1, math.ceil(epoch - 1e-9))


class HistoryCallback(TrainerCallback):
    """Writes the history and the best student.

    Args:
        output_dir: the run's directory.
        save: writes the current student into a directory; called in every process, see `replace_directory`.
        objective: the objective in words.
    """

    def __init__(self, output_dir: Path, save: Callable[[Path | None], None], objective: str) -> None:
        self.output_dir = output_dir
        self.save = save
        self.objective = objective
        self.figures: StepFigures | None = None
        """The figures of the steps; the trainer sets them. None: only the trainer's log is known."""
        self._processes = 1
        self._epochs: list[dict[str, Any]] = []
        self._open, self._step, self._seconds = 0, 0, 0.0
        self._mark = self._written = time.monotonic()

    # ---- the epochs ----

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the clock."""
        self._processes = args.world_size
        self._mark = time.monotonic()
        self._open = self._open or epoch_of(state.epoch or 0.0)

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Close the previous epoch, with its validation and its checkpoint."""
        self._close(state.global_step, 1 + math.floor((state.epoch or 0.0) + 1e-9))

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Count a step of the current epoch."""
        self._step = state.global_step

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write logged steps from time to time."""
        if logs and "loss" in logs and state.is_world_process_zero and time.monotonic() - self._written > _EVERY:
            self._write(state)

    def on_epoch_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Record the epoch after its last step."""
        if self.figures is not None:
            self.figures.settle()
        if state.is_world_process_zero:
            self._write(state)

    def on_evaluate(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write the history after a validation, and `best/` if its loss is the lowest."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if losses[-1] == best_loss(losses) or len(losses) == 1:
            replace_directory(self.output_dir / "best", self.save, main=state.is_world_process_zero)
        if state.is_world_process_zero:
            self._write(state)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write the history after the last step of this call."""
        if self.figures is not None:
            self.figures.settle()
        if state.is_world_process_zero:
            self._write(state)

    # ---- checkpoints ----

    def write_state(self, directory: Path) -> None:
        """Write into a checkpoint what a resumed run needs; the figures must be up to date."""
        self._clock()
        sums = vars(self.figures.epoch) if self.figures is not None else vars(Sums())
        write_json(
            directory / _STATE,
            {"epochs": self._epochs, "open": self._open, "step": self._step, "seconds": self._seconds, "sums": sums},
        )

    def read_state(self, directory: Path) -> None:
        """Continue with what a checkpoint holds; a checkpoint of an older version holds nothing."""
        path = directory / _STATE
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            self._epochs, self._open = state["epochs"], state["open"]
            self._step, self._seconds = state["step"], state["seconds"]
            if self.figures is not None:
                self.figures.epoch = Sums(**state["sums"])

    # ---- rows ----

    def _clock(self) -> None:
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now

    def _close(self, step: int, following: int) -> None:
        if self.figures is not None and self._open and following != self._open:
            self._clock()
            sums = self.figures.end_epoch()
            if sums.steps:
                self._epochs.append(self._row(sums, step))
            self._seconds = 0.0
        self._open = following

    def _row(self, sums: Sums, step: int) -> dict[str, Any]:
        return {
            "epoch": self._open,
            "step": step,
            "steps": sums.steps,
            "seconds": self._seconds,
            "train": sums.means(self._processes),
        }

    def _write(self, state: Any) -> None:
        self._clock()
        epochs = list(self._epochs)
        if self.figures is not None and self.figures.epoch.steps:
            epochs.append(self._row(self.figures.epoch, self._step))
        write_json(self.output_dir / HISTORY, history_rows(state.log_history, epochs, self.objective))
        self._written = time.monotonic()
