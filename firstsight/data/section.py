"""The section `data` of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from firstsight.data.entries import Entry, entry
from firstsight.data.source import COLUMNS, FORMATS, Turns
from firstsight.recipe_yaml import Section, Unit, nearest

_SHARE = re.compile(r"\d+(\.\d+)?%")
_Split = Entry | Annotated[tuple[Entry, ...], Field(min_length=1)]


class DataSection(Section):
    """Where the samples are."""

    root: Path = Path("data")
    """Directory of the data files."""
    train: _Split = Path("train.jsonl")
    """A file or directory relative to `root` (JSONL, a JSON array, CSV, Parquet, a `save_to_disk` directory), a dataset of the hub
    `{hub: ID, subset: ..., split: ...}`, an entry of a LLaMA-Factory file `{dataset_info: FILE, name: ...}`; or a list of these."""
    validation: _Split | None = Path("validation.jsonl")
    """As `train`; or a share of the training rows such as `5%`, chosen by their content; or `none`: a training run then has no
    validation loss and no best student."""
    image_root: Path | None = None
    """Directory that the rows' image paths are relative to, and must stay under; null: `root`."""
    format: Literal[FORMATS] | None = None  # type: ignore[valid-type]
    """The form of the rows (docs/data.md); null: detected for each row."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name of a column -> its name in the files, such as `{question: query, answer: label}`."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the rows to ignore; any other column that has no effect is an error."""
    turns: Turns = "all"
    """Which assistant messages are answers, trained on and measured: `all`, or `last`, the one that closes a row; the others are
    only context."""
    allow_urls: bool = False
    """Images may be http and https addresses: each is fetched once, only from public addresses, and kept in the user's cache directory."""
    max_length: Annotated[int, Field(gt=0), Unit("tokens")] = 4096
    """Longest sequence in tokens, images and answer included; a longer sample is refused."""
    system_prompt: str | None = None
    """Put before the messages of samples that have no system message; null: the chat template's default."""

    @property
    def share(self) -> float:
        """The part of the training rows that is for validation; 0: validation has files of its own."""
        text = str(self.validation)
        return float(text[:-1]) / 100 if _SHARE.fullmatch(text) else 0.0

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _entries(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "validation" and isinstance(value, int | float) and not isinstance(value, bool):
            share = f"{100 * value:g}%" if 0 < value < 1 else "5%"
            raise ValueError(f"must be a file, none, or a share of the training rows with its unit, such as {share}")
        if isinstance(value, list | tuple):
            return tuple(entry(each) for each in value)
        return value if value is None else entry(value)

    @field_validator("columns")
    @classmethod
    def _columns_of_ours(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in COLUMNS:
                raise ValueError(f"has no column {name!r}{nearest(name, sorted(COLUMNS))}")
        if len(set(value.values())) < len(value):
            raise ValueError("must take each column of ours from another one of the files")
        return value

    @field_validator("validation")
    @classmethod
    def _share_within(cls, value: Any) -> Any:
        if value == Path("none"):
            return None
        text = str(value)
        if (
            isinstance(value, Path)
            and text.endswith("%")
            and not (_SHARE.fullmatch(text) and 0 < float(text[:-1]) < 100)
        ):
            raise ValueError("must be a file or a share above 0% and below 100%, such as 5%, or none")
        return value
