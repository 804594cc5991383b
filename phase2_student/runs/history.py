"""`training_history.json` of a run: a row per epoch with its exact means, every logged step and every validation of it.

    [{"epoch": 1, "step": 20, "steps": 20, "seconds": 41.2, "learning_rate": 1e-5, "objective": "T = 2, alpha = 0.7, ...",
      "train": {"loss": ..., "kd": ..., "ce": ..., "agreement": ...},     means over exactly its `steps` steps
      "validation": {"loss": ..., ...} or null,                           the last one of the epoch
      "logged": [{"epoch": 0.5, "step": 10, "loss": ..., ...}],           means over the steps since the log before
      "validations": [{"epoch": 1.0, "step": 20, "loss": ..., ...}]}]

Rows of older runs have neither `steps`, `logged` nor `validations`.
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
    """How a run went; no rows before the first log."""

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
        """By the rule of `best.py`; None where there is none."""
        return best_loss(entry["loss"] for entry in self.validations)

    @property
    def last_step(self) -> int:
        """0 where there is none."""
        return int(self.epochs[-1]["step"]) if self.epochs else 0

    @property
    def seconds(self) -> float | None:
        """Time of training, validation and saving, without steps that were lost to a kill; None where a row does not say."""
        if not self.epochs or not all(row.get("seconds") for row in self.epochs):
            return None
        return float(sum(row["seconds"] for row in self.epochs))


def read_history(directory: Path) -> History:
    """The history of the run in a directory, without rows where there is no file yet.

    Raises:
        DataError: the file is no history.
    """
    path = directory / HISTORY
    if not path.is_file():
        return History()
    rows: list[dict[str, Any]] = read_json(path, list)
    if not all(isinstance(row, dict) and {"epoch", "step", "train", "validation"} <= row.keys() for row in rows):
        raise DataError(f"{path}: a row has no epoch, step, train or validation; the file was damaged")
    for row in rows:
        entries = [
            *row.get("logged", []),
            *row.get("validations", []),
            *([row["validation"]] if row["validation"] else []),
        ]
        if not all(isinstance(entry, dict) and "loss" in entry for entry in entries):
            raise DataError(f"{path}: a step or a validation has no loss; the file was damaged")
    return History(rows)
