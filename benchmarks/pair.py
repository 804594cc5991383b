"""The miniature pair with data and a recipe in a directory: what the training benchmarks start from."""

from __future__ import annotations

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

import yaml

from firstsight.demo.synth.writing import write_dataset
from firstsight.pair import load_prompter
from firstsight.recipe import Recipe, load_recipe


def place_pair(
    directory: Path, *, train: int, validation: int, epochs: int, batch: int, learning_rate: float, models: Path | None
) -> Recipe:
    """Write models, data and recipe.yaml, and load the recipe; what exists already is kept.

    Args:
        directory: where everything goes.
        train: training samples.
        validation: validation samples.
        epochs: epochs of a run.
        batch: samples per step.
        learning_rate: learning rate of a run.
        models: directory of `teacher` and `student`; None: the shipped pair.
    """
    for name in ("teacher", "student"):
        target = directory / "models" / name
        if not target.exists():
            with as_file(files("firstsight.demo.miniature") / name) as shipped:
                shutil.copytree(models / name if models else shipped, target)
    if not (directory / "data" / "validation.jsonl").exists():
        write_dataset(directory / "data", train=train, validation=validation, seed=0, progress=False)
    path = directory / "recipe.yaml"
    if not path.exists():
        recipe = {
            # float32 throughout: cached and online differ only in what the cache leaves out
            "teacher": {"model": "models/teacher", "quantization": "none", "dtype": "float32"},
            "student": {"model": "models/student", "dtype": "float32"},
            "data": {"root": "data", "max_length": 512},
            "cache": {"path": "cache-64.zarr", "top_k": 64},
            "loss": {"temperature": 2.0, "alpha": 0.7},
            "training": {
                "num_train_epochs": epochs,
                "per_device_train_batch_size": batch,
                "per_device_eval_batch_size": 32,
                "learning_rate": learning_rate,
                "weight_decay": 0.01,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 20,
                "save_strategy": "no",
                "eval_strategy": "steps",
                "eval_steps": 10**6,  # never
                "report_to": "none",
            },
        }
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    recipe_here = load_recipe(path)
    for section in (recipe_here.teacher, recipe_here.student):  # both load, or the error comes now
        load_prompter(Path(recipe_here.model_source(section)), section)
    return recipe_here


class Deadline:
    """Whether there is time for another piece of work that takes as long as the longest so far.

    Args:
        minutes: time from now on.
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.perf_counter() + 60 * minutes
        self._longest = 0.0

    def allows(self) -> bool:
        """Whether there is time for one more."""
        return time.perf_counter() + self._longest < self._end

    def took(self, seconds: float) -> None:
        """Note that a piece of work is done."""
        self._longest = max(self._longest, seconds)
