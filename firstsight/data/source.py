"""What a split is read from: files, and how their rows are to be understood. Light: no image library, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FORMATS = ("messages", "trl", "conversations", "prompt_completion", "instruction", "query", "flat")
"""Forms of rows by name; `firstsight.data.forms` has the module of each."""

COLUMNS = frozenset([
    "id", "images", "image", "frames", "times", "category", "environment", "options", "answers", "messages",
    "conversations", "system", "prompt", "completion", "instruction", "input", "output",
    "history", "query", "response", "question", "answer",
])  # fmt: skip
"""Names of columns that `data.columns` can map to."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The files of one split."""

    files: tuple[Path, ...]
    """In their order; each of any container: JSONL, a JSON array, CSV, Parquet, a `save_to_disk` directory; text also as gzip."""
    root: Path
    """Paths of images are relative to it and stay under it."""
    format: str | None = None
    """One of `FORMATS`; None: found by looking at each row."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> its name in the files."""
    ignore_columns: frozenset[str] = frozenset()
    """Columns that are known to be of no use."""
    share: float = 0.0
    """The part of the rows that is for validation, by key; 0: all rows are of this split."""
    part: Literal["train", "validation"] = "train"
    """Which side of `share` this split is."""

    def takes(self, key: str) -> bool:
        """Whether a sample belongs to this split. It depends on its content alone: growing data move nobody."""
        if not self.share:
            return True
        below = int(key[:16], 16) < self.share * 2**64
        return below == (self.part == "validation")

    @property
    def names(self) -> list[str]:
        """Each file as messages call it: its name, with its directory where two files have the same."""
        names = [path.name for path in self.files]
        return [f"{path.parent.name}/{path.name}" if names.count(path.name) > 1 else path.name for path in self.files]

    def __str__(self) -> str:
        names = ", ".join(self.names)
        return f"{self.share:.3g} of {names} for validation" if self.share and self.part == "validation" else names
