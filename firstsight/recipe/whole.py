"""A whole recipe: its sections, the rules between them, and the paths that they state."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from firstsight.data.entries import Entry, GivenRows, HubSplit, ListedDataset
from firstsight.data.section import DataSection
from firstsight.data.source import DataSource
from firstsight.errors import ModelError, RecipeError
from firstsight.recipe.cache import CacheSection
from firstsight.recipe.loss import LossSection
from firstsight.recipe.models import StudentSection, TeacherSection
from firstsight.recipe_yaml import NO_PLACE, Section


class Recipe(Section):
    """A run of both phases."""

    teacher: TeacherSection = TeacherSection()
    student: StudentSection = StudentSection()
    data: DataSection = DataSection()
    cache: CacheSection = CacheSection()
    loss: LossSection = LossSection()
    training: dict[str, Any] = Field(default_factory=dict)
    """`transformers.TrainingArguments` by name."""
    directory: Path = Field(default=Path(), exclude=True)
    """Directory of the recipe file."""

    @model_validator(mode="after")
    def _temperature_within_nodes(self) -> Recipe:
        low, high = self.cache.temperatures[0], self.cache.temperatures[-1]
        if self.cache.targets == "top_k" and not low <= self.loss.temperature <= high:
            raise PydanticCustomError(
                "temperature_range",
                "loss.temperature: must lie within cache.temperatures, {low} to {high}, got {got}; exact targets "
                "(cache.targets: exact) take any",
                {"low": f"{low:g}", "high": f"{high:g}", "got": f"{self.loss.temperature:g}"},
            )
        return self

    @model_validator(mode="after")
    def _tail_of_top_k(self) -> Recipe:
        if self.cache.targets == "exact" and "tail" in self.loss.model_fields_set:
            raise PydanticCustomError(
                "tail",
                "loss.tail: has no effect with cache.targets: exact, which gives whole distributions; remove the key",
            )
        return self

    @model_validator(mode="after")
    def _a_place_for_the_run(self) -> Recipe:
        place = self.training.get("output_dir", "runs/student")
        if not isinstance(place, str | Path) or not str(place).strip():
            raise PydanticCustomError(
                "output_dir",
                "training.output_dir: {expected}, got {got}",
                {"expected": NO_PLACE, "got": repr(place)},
            )
        return self

    def source(self, split: Literal["train", "validation"]) -> DataSource:
        """The files of a split, and how to read their rows.

        Raises:
            RecipeError: the recipe has no validation data.
        """
        data = self.data
        given = data.train if split == "train" or data.share else data.validation
        if given is None:
            raise RecipeError(
                "data.validation: expected rows to measure on, got none; give a file, or a share such as 5%"
            )
        return DataSource(
            files=tuple(self._entry(each) for each in (given if isinstance(given, tuple) else (given,))),
            root=self.image_root,
            format=data.format,
            columns=data.columns,
            ignore_columns=frozenset(data.ignore_columns),
            allow_urls=data.allow_urls,
            skip=self.cache.on_error == "skip",
            share=data.share,
            part=split,
        )

    def sources(self) -> list[DataSource]:
        """The splits, training first; only the training rows if there is no validation data."""
        if self.data.validation is None:
            return [self.source("train")]
        return [self.source("train"), replace(self.source("validation"), beside_training=True)]

    def _entry(self, entry: Entry) -> Entry:
        """An entry of a split with its paths made absolute."""
        if isinstance(entry, ListedDataset):
            return entry.model_copy(update={"dataset_info": self.data_root / entry.dataset_info.expanduser()})
        if isinstance(entry, HubSplit):
            local = self.data_root / Path(entry.hub).expanduser()
            return entry.model_copy(update={"hub": str(local.resolve())}) if local.is_dir() else entry
        return entry if isinstance(entry, GivenRows) else self.data_root / entry.expanduser()

    @property
    def data_root(self) -> Path:
        """Directory of the data files."""
        return self._path(self.data.root)

    @property
    def image_root(self) -> Path:
        """Directory that the rows' image paths are relative to."""
        return self.data_root if self.data.image_root is None else self._path(self.data.image_root)

    def without_roots(self, text: str) -> str:
        """A message without this machine's image directory, for files that others read."""
        return text.replace(f"{self.image_root}/", "")

    def _path(self, path: Path) -> Path:
        """A path of the recipe: relative to its directory, `~` expanded."""
        return self.directory / path.expanduser()

    @property
    def cache_location(self) -> str:
        """Directory or URL of the cache."""
        return self.cache.path if "://" in self.cache.path else str(self._path(Path(self.cache.path)))

    @property
    def cache_scratch(self) -> Path | None:
        """Directory for decoded units of the cache."""
        scratch = self.cache.scratch
        return None if scratch is None else self._path(scratch)

    @property
    def output_dir(self) -> Path:
        """Directory of the training run."""
        return self._path(Path(str(self.training.get("output_dir", "runs/student"))))

    @model_validator(mode="after")
    def _one_way_to_train(self) -> Recipe:
        student = self.student
        if student.lora is not None and (student.freeze or student.precision != "fp32_master"):
            key = "freeze" if student.freeze else "precision"
            raise PydanticCustomError(
                "lora",
                "student.{key}: does not go with student.lora, which freezes everything but float32 adapters; remove one of them",
                {"key": key},
            )
        return self

    def model_source(self, section: TeacherSection | StudentSection) -> str:
        """A directory as a path, else the hub id.

        Raises:
            ModelError: the name can only be a directory, and that was not found; or it is one, and the section has a revision.
        """
        kind = "teacher" if isinstance(section, TeacherSection) else "student"
        local = (self.directory / Path(section.model).expanduser()).resolve()
        if local.is_dir():
            if section.revision is not None:
                raise ModelError(
                    f"{kind}.revision: {local} is a directory, which has no revision {section.revision!r}; remove the key"
                )
            return str(local)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", section.model) or section.model.startswith((".", "~")):
            raise ModelError(f"{kind}.model: directory {local} not found; give a directory or a hub id")
        return section.model

    def dump(self) -> dict[str, Any]:
        """The recipe as plain YAML types, defaults included; it can be read again."""
        dumped = self.model_dump(mode="json")
        if self.cache.targets == "exact":
            del dumped["loss"]["tail"]
        return {**dumped, "cache": self.cache.effective()}
