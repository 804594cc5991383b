"""`training_history.json` of a run: one entry per epoch with its exact means, its logged steps and its validations.

    [{"epoch": 1, "step": 20, "steps": 20, "seconds": 41.2, "learning_rate": 1e-5, "objective": "T = 2, alpha = 0.7, ...",
      "train": {"loss": ..., "kd": ..., "ce": ..., "agreement": ...},     means over exactly its `steps` steps
      "validation": {"loss": ..., ...} or null,                           the last one of the epoch
      "logged": [{"epoch": 0.5, "step": 10, "loss": ..., ...}],           means over the steps since the log before
      "validations": [{"epoch": 1.0, "step": 20, "loss": ..., ...}]}]

Entries of older runs have neither `steps`, `logged` nor `validations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstsight.errors import DataError
from phase2_student.runs.best import best_loss
from phase2_student.runs.files import read_json

HISTORY = "training_history.json"


@dataclass(frozen=True)
class History:
    """The history of a run; empty before the first log."""

    epochs: Sequence[dict[str, Any]] = ()

    @property
    def logged(self) -> list[dict[str, Any]]:
        """Every logged step; empty for older runs."""
        return [entry for row in self.epochs for entry in row.get("logged", [])]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Every validation, in the middle of an epoch or at its end: `step`, `epoch`, `loss` and its parts."""
        found = []
        for row in self.epochs:
            older = [{"epoch": row["epoch"], "step": row["step"], **row["validation"]}] if row["validation"] else []
            found += row.get("validations", older)
        return found

    @property
    def best_validation_loss(self) -> float | None:
        """The lowest validation loss by the rule of `best.py`; None if there is none."""
        return best_loss(entry["loss"] for entry in self.validations)

    @property
    def last_step(self) -> int:
        """The last step; 0 if there is none."""
        return int(self.epochs[-1]["step"]) if self.epochs else 0

    @property
    def seconds(self) -> float | None:
        """Time of training, validation and saving, without steps that a kill lost; None if an epoch does not record it."""
        if not self.epochs or not all(row.get("seconds") for row in self.epochs):
            return None
        return float(sum(row["seconds"] for row in self.epochs))


def read_history(directory: Path) -> History:
    """The history of the run in a directory; empty if there is no file yet.

    Raises:
        DataError: the file is no history.
    """
    path = directory / HISTORY
    if not path.is_file():
        return History()
    rows: list[dict[str, Any]] = read_json(path, list)
    if not all(isinstance(row, dict) and {"epoch", "step", "train", "validation"} <= row.keys() for row in rows):
        raise DataError(f"{path}: an entry has no epoch, step, train or validation; the file is damaged")
    for row in rows:
        entries = [
            *row.get("logged", []),
            *row.get("validations", []),
            *([row["validation"]] if row["validation"] else []),
        ]
        if not all(isinstance(entry, dict) and "loss" in entry for entry in entries):
            raise DataError(f"{path}: a step or a validation has no loss; the file is damaged")
    return History(rows)
