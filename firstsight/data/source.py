"""What a split is read from: files, and how to read their rows. Light: no image library, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from firstsight.data.entries import Entry

FORMATS = ("messages", "trl", "conversations", "prompt_completion", "instruction", "query", "flat")
"""Forms of rows by name; `firstsight.data.forms` has the module of each."""

Turns = Literal["all", "last"]
"""Which assistant messages are answers: all, or the one that closes a row; the others are only context."""

COLUMNS = frozenset([
    "id", "images", "image", "frames", "times", "category", "environment", "options", "answers", "messages",
    "conversations", "system", "prompt", "completion", "instruction", "input", "output",
    "history", "query", "response", "question", "answer",
])  # fmt: skip
"""Names of columns that `data.columns` can map to."""


@dataclass(frozen=True, kw_only=True)
class Tags:
    """How the turns of `conversations` are written, if not with `from`, `value`, `human` and `gpt`."""

    role: str
    """Key of a turn's role."""
    content: str
    """Key of its text."""
    roles: Mapping[str, str]
    """Value of the role -> `system`, `user` or `assistant`."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The files of one split."""

    files: tuple[Entry, ...]
    """In their order; each in any container: JSONL, a JSON array, CSV, Parquet, a `save_to_disk` directory; text also as gzip; or
    a dataset of the hub, or an entry of a `dataset_info.json`."""
    root: Path
    """Paths of images are relative to it and stay under it."""
    format: str | None = None
    """One of `FORMATS`; None: detected for each row."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> its name in the files."""
    ignore_columns: frozenset[str] = frozenset()
    """Columns to ignore."""
    mapped_only: bool = False
    """Columns that are not in `columns` are refused, even those that the form takes."""
    tags: Tags | None = None
    """Keys and roles of turns, where they are stated."""
    allow_urls: bool = False
    """Images may be addresses on the web."""
    skip: bool = False
    """Rows with an image that was not found or cannot be read are left out by name; else they are an error."""
    share: float = 0.0
    """The part of the rows that is for validation, by key; 0: all rows are of this split."""
    part: Literal["train", "validation"] = "train"
    """Which side of `share` this split is."""
    beside_training: bool = False
    """The training rows are read as well."""

    def takes(self, key: str) -> bool:
        """Whether a sample belongs to this split. It depends only on the sample's content: adding data moves no sample."""
        if not self.share:
            return True
        below = int(key[:16], 16) < self.share * 2**64
        return below == (self.part == "validation")

    @property
    def tells_faults(self) -> bool:
        """Whether faults of rows are told with this split. Both sides of a share read every row; a row that cannot be read has no
        key that says to which it belongs, and is told with the training rows if these are read as well.
        """
        return not (self.share and self.beside_training)

    def __str__(self) -> str:
        names = ", ".join(file_names(self.files))
        return f"{100 * self.share:g}% of {names} for validation" if self.share and self.part == "validation" else names


def file_names(files: Sequence[Entry]) -> list[str]:
    """Each file as messages call it: its name, with its directory if two files have the same name."""
    names = [file.name if isinstance(file, Path) else str(file) for file in files]
    return [
        f"{file.parent.name}/{file.name}" if isinstance(file, Path) and names.count(file.name) > 1 else name
        for file, name in zip(files, names, strict=True)
    ]
