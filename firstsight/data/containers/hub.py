"""Hub datasets, directories that `datasets.load_dataset` reads, and a `datasets.Dataset` (extra `[data]`)."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from firstsight.data.containers.arrow import Tables, check_names
from firstsight.data.entries import HubSplit
from firstsight.errors import DataError
from firstsight.recipe_yaml import yaml_flow


class DatasetRows(Tables):
    """The rows of a `datasets.Dataset`; images stay as they are stored."""

    @property
    def count(self) -> int:
        """Rows."""
        return len(self._rows)

    def part(self, start: int, count: int) -> Any:
        """Rows from `start` on."""
        return self._rows[start : start + count]

    @property
    @abstractmethod
    def _rows(self) -> Any:
        """The dataset, in the format `arrow`."""


class HubDataset(DatasetRows):
    """A split, downloaded or prepared by `datasets` in its own cache."""

    def __init__(self, split: HubSplit, name: str) -> None:
        super().__init__(Path(split.hub), name)
        self._split = split

    @cached_property
    def _rows(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{self.name}: a hub dataset needs the package datasets; install it with: pip install 'firstsight[data]'"
            ) from None
        asked = self._split
        if asked.revision is not None and self.path.is_dir():
            raise DataError(f"{self.name}: is a directory, which has no revision {asked.revision!r}; remove the key")
        troubles = (
            OSError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            ImportError,
            datasets.exceptions.DatasetsError,
        )
        try:
            found = datasets.load_dataset(asked.hub, asked.subset, split=asked.split, revision=asked.revision)
        except troubles as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"{self.name}: datasets cannot load it ({reason}); check hub, subset and split") from None
        if isinstance(found, dict):
            if len(found) != 1:
                raise DataError(
                    f"{self.name}: has the splits {', '.join(found)}; name one: {yaml_flow({'split': next(iter(found), 'train')})[1:-1]}"
                )
            (found,) = found.values()
        rows = found.with_format("arrow")
        check_names(found.features.arrow_schema, self.name)
        return rows
