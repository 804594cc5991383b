"""What a run writes while it trains: `training_history.json` per epoch and `best/` by validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from phase2_student.runs.best import best_loss
from phase2_student.runs.files import replace_directory, write_json

_TRAIN = ("loss", "kd", "ce", "agreement", "grad_norm", "tokens_per_second", "data_wait")
_VALIDATION = ("loss", "kd", "ce", "agreement")


def epoch_history(log: Sequence[dict[str, Any]], objective: str) -> list[dict[str, Any]]:
    """One row per epoch from the trainer's log: training means of the epoch, validation at its end.

    Args:
        log: `TrainerState.log_history`.
        objective: what the `loss` and `kd` of the rows are of, in words.

    Returns:
        Rows `{"epoch", "step", "seconds", "learning_rate", "objective", "train": {...}, "validation": {...}}`; validation None
        before it was run. The seconds are those of training, validation and saving; steps that were lost to a kill are not counted.
    """
    epochs: dict[int, list[dict[str, Any]]] = {}
    for entry in log:
        epochs.setdefault(max(1, math.ceil(entry["epoch"] - 1e-9)), []).append(entry)
    rows = []
    for number, entries in sorted(epochs.items()):
        train = [entry for entry in entries if "loss" in entry]
        validation = [entry for entry in entries if "eval_loss" in entry]
        rows.append(
            {
                "epoch": number,
                "step": entries[-1]["step"],
                "seconds": sum(entry.get("seconds", 0.0) for entry in entries),
                "learning_rate": train[-1]["learning_rate"] if train else None,
                "objective": objective,
                "train": {
                    name: sum(entry[name] for entry in train) / len(train)
                    for name in _TRAIN
                    if train and name in train[0]
                },
                "validation": {name: validation[-1][f"eval_{name}"] for name in _VALIDATION} if validation else None,
            }
        )
    return rows


class HistoryCallback(TrainerCallback):
    """Writes the history and the best student whenever a validation has run.

    Args:
        output_dir: of the run.
        save: writes the current student into a directory; called by every process, see `replace_directory`.
        objective: what is minimised, in words.
    """

    def __init__(self, output_dir: Path, save: Callable[[Path | None], None], objective: str) -> None:
        self.output_dir = output_dir
        self.save = save
        self.objective = objective

    def on_evaluate(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """After a validation."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if losses[-1] == best_loss(losses) or len(losses) == 1:
            replace_directory(self.output_dir / "best", self.save, main=state.is_world_process_zero)
        if state.is_world_process_zero:
            self._write(state)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """After the last step."""
        if state.is_world_process_zero:
            self._write(state)

    def _write(self, state: Any) -> None:
        log = [entry for entry in state.log_history if "epoch" in entry]
        write_json(self.output_dir / "training_history.json", epoch_history(log, self.objective))
