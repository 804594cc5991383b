"""Samples of data files: rows of every supported form (docs/data.md), checked, each with its key and its id.

    {"id": "...", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]},
                               {"role": "assistant", "content": [{"type": "text", "text": "..."}]}],
     "images": ["images/a.png"], "category": "...", "environment": "..."}

`frames` (with optional `times`, in seconds) may replace `images`: frames of a video, in order.
`options` may list the texts of a multiple choice, in the order of their letters; only the evaluation uses them,
as it does `answers`, what several people answered (VQA accuracy).
A content may be a plain string; images without a place then go before the first user message's text, as in TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from firstsight.data.columns import ColumnUse
from firstsight.data.compact import NumberSet, text_mark
from firstsight.data.containers import open_container
from firstsight.data.entries import GivenRows, Rows
from firstsight.data.listed import sources_of
from firstsight.data.row import parse_row
from firstsight.data.sample import Sample as Sample
from firstsight.data.source import DataSource, file_names
from firstsight.errors import DataError, PictureError
from storage.wording import counted


@dataclass(frozen=True, kw_only=True)
class Located:
    """A sample, and where its row is."""

    file: int
    locator: int
    number: int
    sample: Sample


class SampleFiles:
    """The samples of one split, in order, and any of them again.

    Args:
        source: the files.
        columns: takes note of the columns that the rows have.

    Raises:
        DataError: a file that was not found, or of a kind that is not supported.
    """

    def __init__(self, source: DataSource, columns: ColumnUse | None = None) -> None:
        self.source = source
        self._columns = columns or ColumnUse()
        found = [each for entry in source.files for each in sources_of(source, entry)]
        files = [file for file, _ in found]
        self._sources = [understood for _, understood in found]
        for understood in self._sources if columns is not None else ():
            self._columns.ask(understood)
        self.containers = [open_container(file, name) for file, name in zip(files, file_names(files), strict=True)]
        self.repeated_ids = 0
        """How many rows of the last pass have the id of an earlier row; their ids get `#2`, `#3`."""
        self.left_out: list[str] = []
        """What is wrong with each row that the last pass left out (`DataSource.skip`), if the split tells it (`tells_faults`)."""

    def located(self, fault: Callable[[DataError], object] | None = None) -> Iterator[Located]:
        """Every sample of the split.

        Args:
            fault: called with the error of a row or a file, which is then left out, if the split tells it (`tells_faults`); None: the
                error is raised.

        Raises:
            DataError: names file, row and what is wrong; also if there are no rows at all.
        """
        self.repeated_ids, self.left_out = 0, []
        rows = taken = failed = broken = 0
        tells, first = self.source.tells_faults, ""
        report = fault or (lambda error: self.left_out.append(str(error)))
        seen = NumberSet()
        repeated: dict[str, int] = {}
        for file, container in enumerate(self.containers):
            try:
                for locator, number, value in container.rows():
                    rows += 1
                    self._columns.row(value)
                    try:
                        if isinstance(value, DataError):
                            raise value
                        sample = self._parsed(file, value, container.place(number))
                        if not self.source.takes(sample.key if self.source.share else ""):
                            continue
                    except DataError as error:
                        if fault is None and not (self.source.skip and isinstance(error, PictureError)):
                            raise
                        failed, first = failed + 1, first or str(error)
                        if tells:
                            report(error)
                        continue
                    if not seen.add(text_mark(sample.id)):
                        self.repeated_ids += 1
                        sample = replace(sample, id=_next_id(sample.id, seen, repeated))
                    taken += 1
                    yield Located(file=file, locator=locator, number=number, sample=sample)
            except DataError as error:
                if fault is None:
                    raise
                if tells:
                    fault(error)
                broken += 1
        told = broken or (failed == rows and (rows or not tells))  # by the faults above, or with the training rows
        if not taken and (fault is None or not told):
            empty = DataError(
                f"{self.source}: none of the {counted(rows, 'row')} can be used; the first: {first}"
                if failed and failed == rows
                else f"{self.source}: none of the {counted(rows, 'row')} falls into this split; change the share of data.validation"
                if rows
                else f"{self.source}: holds no rows; give a file with at least one"
            )
            if fault is None:
                raise empty
            fault(empty)

    def sample(self, file: int, locator: int, number: int) -> Sample:
        """Read the sample of a row from its file again; its id is the row's own. Raises as `located`."""
        return self._parsed(file, self.containers[file].row(locator), self.place(file, number))

    def _parsed(self, file: int, value: Any, place: str) -> Sample:
        source = self._sources[file]
        try:
            return parse_row(value, place, source)
        except DataError as error:
            name = value.get(source.columns.get("id", "id")) if isinstance(value, dict) else None
            if isinstance(name, str | int):  # so that a row can also be found by its own name
                raise type(error)(f"{error} (the row's id is {name!r:.80})") from None
            raise

    def place(self, file: int, number: int) -> str:
        """What messages call a row."""
        return self.containers[file].place(number)


def _next_id(name: str, seen: NumberSet, repeated: dict[str, int]) -> str:
    count = repeated.get(name, 1) + 1
    while not seen.add(text_mark(f"{name}#{count}")):
        count += 1
    repeated[name] = count
    return f"{name}#{count}"


def as_source(data: DataSource | Path | str | Rows, root: Path | str | None = None) -> DataSource:
    """A split, a file or rows as a source; see `load_samples`."""
    if isinstance(data, DataSource):
        return data
    if isinstance(data, Path | str):
        return DataSource(files=(Path(data),), root=Path(root or Path(data).parent))
    return DataSource(files=(GivenRows.of(data, "rows"),), root=Path(root or Path.cwd()))


def load_samples(
    data: DataSource | Path | str | Rows, root: Path | str | None = None, *, left_out: list[str] | None = None
) -> list[Sample]:
    """Read and check the rows of a split, or of one file; image paths are relative to `root` and stay under it.

    Args:
        data: the split (`recipe.source("train")`), the file, or the rows: a list of dictionaries, or a `datasets.Dataset`.
        root: directory of the images; None: the directory of the file, for rows the current directory.
        left_out: gets the error of each row that is left out (`DataSource.skip`).

    Raises:
        DataError: names file and row, and what is wrong with it; a missing image is found here, before any model is loaded.
    """
    return list(iter_samples(data, root, left_out=left_out))


def iter_samples(
    data: DataSource | Path | str | Rows,
    root: Path | str | None = None,
    *,
    left_out: list[str] | None = None,
    columns: ColumnUse | None = None,
) -> Iterator[Sample]:
    """`load_samples`, one sample at a time; `columns` takes note of the columns that the rows have."""
    files = SampleFiles(as_source(data, root), columns)
    for each in files.located():
        yield each.sample
    if left_out is not None:
        left_out += files.left_out


def check_files(
    sources: Iterable[DataSource],
    *,
    left_out: list[str] | None = None,
    columns: ColumnUse | None = None,
    progress: bool = False,
) -> int:
    """Check every row of some splits, and that its images exist. Returns the number of rows. Raises as `load_samples`."""
    rows = (sample for source in sources for sample in iter_samples(source, left_out=left_out, columns=columns))
    return sum(1 for _ in tqdm(rows, desc="checking samples", unit=" sample", disable=not progress, leave=False))
