"""How a run turned its samples into the student's inputs: recorded in its directory and beside every student that it saves.

preprocessing_of(recipe, prompter).write(run_directory)
own = read_preprocessing(Path("runs/reference/best"))      # None for a model that no run of ours made
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from firstsight.errors import ModelError
from firstsight.identity import text_digest
from firstsight.prompting import Prompter
from firstsight.recipe import DataSection, Recipe, StudentSection
from phase2_student.runs.files import write_json

PREPROCESSING = "preprocessing.json"
_RUN_FILES = ("run.json", "recipe.yaml")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The settings that decide the inputs of a student, besides the files of its processor."""

    max_pixels: int | None
    """Images were scaled down to at most this many pixels; None: the processor's own limit."""
    system_prompt: str | None
    """System prompt for samples without a system message; None: the chat template's default."""
    turns: str | None
    """Which answers of a conversation it was trained on: `all` or `last`; None: not recorded."""
    chat_template: str | None
    """sha256 of the chat template; None: not recorded."""

    def write(self, directory: Path) -> None:
        """Write the settings into an existing directory."""
        write_json(directory / PREPROCESSING, asdict(self))

    def applied(self, section: StudentSection, data: DataSection) -> tuple[StudentSection, DataSection]:
        """Sections of a recipe with these settings in place of their own, except `turns`, which changes no prompt."""
        return (
            section.model_copy(update={"max_pixels": self.max_pixels}),
            data.model_copy(update={"system_prompt": self.system_prompt}),
        )


def preprocessing_of(recipe: Recipe, prompter: Prompter) -> Preprocessing:
    """The preprocessing of a run.

    Args:
        recipe: the run's recipe.
        prompter: the student's prompter, as in training.
    """
    return Preprocessing(
        max_pixels=recipe.student.max_pixels,
        system_prompt=recipe.data.system_prompt,
        turns=prompter.turns,
        chat_template=text_digest(prompter.processor.chat_template),
    )


def read_preprocessing(directory: Path) -> Preprocessing | None:
    """The preprocessing of the run that made a model, from its own file or from the run's directory above it; None: no run made it.

    Raises:
        ModelError: the file cannot be read.
    """
    run = directory.resolve().parent
    for path in (directory / PREPROCESSING, *([run / PREPROCESSING] if (run / _RUN_FILES[0]).is_file() else [])):
        if path.is_file():
            return _read(path)
    if all((run / name).is_file() for name in _RUN_FILES):  # from before students recorded it
        try:
            recipe = yaml.safe_load((run / _RUN_FILES[1]).read_text(encoding="utf-8"))
            return Preprocessing(
                max_pixels=recipe["student"]["max_pixels"],
                system_prompt=recipe["data"]["system_prompt"],
                turns=None,
                chat_template=None,
            )
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            return None
    return None


def _read(path: Path) -> Preprocessing:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Preprocessing(**{name: content[name] for name in Preprocessing.__dataclass_fields__})
        if not all(isinstance(value, str | None) for value in (found.system_prompt, found.turns, found.chat_template)):
            raise TypeError
        if found.max_pixels is not None and (type(found.max_pixels) is not int or found.max_pixels < 1):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path}: this is not the preprocessing of a run; restore the file, or delete it to use the recipe's settings"
        ) from None
    return found
