"""The data and the caches of `benchmarks.regimes`: regimes differ only in their labels.

A directory holds models, data/{train,validation,test}.jsonl, a recipe, and the caches: `exact` for all rows, `top_k` and
`tail_64` derived from it, `own` for the teacher's own answers to questions without labels, `answers` for those answers as labels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from firstsight.demo.synth.writing import write_dataset
from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.answers import write_answers
from phase1_teacher.derive import derive, prepare_derivation
from phase1_teacher.dump import dump, prepare_dump

SEED = 0
"""Seed of the data."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Which labels a training run has."""

    title: str
    data: dict[str, Any] = field(default_factory=dict)
    """Arguments of `write_dataset` that draw them, in addition to the sizes."""
    longest: int = 32
    """Maximum tokens of an answer by the teacher or a student."""
    scenes: int = 1
    """How many times as many training samples as the other regimes have."""
    rivals: bool = True
    """Whether the teacher's answers are made into labels, too."""


REGIMES = {
    "A": Regime(title="10% of the samples have labels", data={"labels": 0.1}),
    "B": Regime(title="40% of the labels are swapped", data={"swapped": 0.4}),
    "C": Regime(title="many valid answers, one of them drawn", data={"described": True}, longest=112),
    "D": Regime(title="all labels, all right"),
    "E": Regime(
        title="no labels; more scenes, or more steps on the same", data={"labels": 0.0}, scenes=8, rivals=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much data there is, and how long a run takes."""

    train: int = 1_400
    validation: int = 140
    """Number of samples that learning rates and checkpoints are chosen on."""
    test: int = 560
    steps: int = 250
    batch: int = 16


def place(directory: Path, name: str, sizes: Sizes) -> None:
    """Write models, data, recipe and caches of a regime; what exists is kept.

    Args:
        directory: directory of this regime.
        name: name of the regime.
        sizes: sizes of the data.
    """
    regime = REGIMES[name]
    for model in ("teacher", "student"):
        target = directory / "models" / model
        if not target.exists():
            with as_file(files("firstsight.demo.miniature") / model) as shipped:
                shutil.copytree(shipped, target)
    _place_data(directory / "data", regime, sizes)
    _place_recipe(directory, regime, sizes)
    few = (directory / "data" / "labelled.jsonl").exists()
    held_out = "data.validation=[validation.jsonl, test.jsonl]"
    exact = recipe_of(
        directory, ["cache.path=exact.zarr", "cache.targets=exact", f"cache.generate_missing={few}", held_out]
    )
    _dump(exact)
    for kind, extra in (("top_k", []), ("tail_64", ["cache.tail_rank=64"])):
        derive(
            prepare_derivation(
                exact.cache_location, recipe_of(directory, [f"cache.path={kind}.zarr", held_out, *extra])
            ),
            progress=False,
        )
    if not regime.rivals:
        return
    answers = directory / "data" / "answers.jsonl"
    source = exact
    if not few:
        source = recipe_of(
            directory, ["cache.path=own.zarr", "cache.generate_missing=true", "data.train=unlabelled.jsonl"]
        )
        _dump(source)
    if not answers.exists():
        write_answers(source, source.cache_location, answers)
    _dump(
        recipe_of(
            directory,
            ["cache.path=answers.zarr", "cache.generate_missing=false", f"data.train={answer_rows(directory)}"],
        )
    )


def answer_rows(directory: Path) -> str:
    """The rows of a training on the teacher's answers as labels, as a recipe states them."""
    few = (directory / "data" / "labelled.jsonl").exists()
    return "[labelled.jsonl, answers.jsonl]" if few else "answers.jsonl"


def label_rows(directory: Path) -> str:
    """The rows of a training on labels alone."""
    return "labelled.jsonl" if (directory / "data" / "labelled.jsonl").exists() else "train.jsonl"


def recipe_of(directory: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a dump or a run of a regime."""
    return load_recipe(directory / "recipe.yaml", overrides)


def _dump(recipe: Recipe) -> None:
    dump(prepare_dump(recipe, progress=False), progress=False)


def _place_data(data: Path, regime: Regime, sizes: Sizes) -> None:
    if data.exists():
        return
    options = dict(regime.data)
    if "labels" in options:
        options["labels"] = round(options["labels"] * sizes.train)
    scratch = data.with_name(".data.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    held_out = sizes.validation + sizes.test
    write_dataset(scratch, train=regime.scenes * sizes.train, validation=held_out, seed=SEED, progress=False, **options)
    lines = (scratch / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("validation", lines[: sizes.validation]), ("test", lines[sizes.validation :])):
        (scratch / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    rows = [json.loads(line) for line in (scratch / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [_line(row | {"messages": row["messages"][:1]}) for row in rows]
    (scratch / "unlabelled.jsonl").write_text("".join(asked), encoding="utf-8")
    for count in scene_counts(regime, sizes):
        (scratch / rows_of_scenes(count)).write_text("".join(map(_line, rows[:count])), encoding="utf-8")
    scratch.rename(data)


def scene_counts(regime: Regime, sizes: Sizes) -> list[int]:
    """Numbers of training samples: those of the other regimes, and twice as many until all are taken."""
    return [sizes.train * 2**power for power in range(regime.scenes.bit_length())]


def rows_of_scenes(count: int) -> str:
    """The file of the first training samples."""
    return f"first-{count}.jsonl"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _place_recipe(directory: Path, regime: Regime, sizes: Sizes) -> None:
    recipe = {
        # float32 throughout: the students differ only in what they were trained on
        "teacher": {"model": "models/teacher", "quantization": "none", "dtype": "float32"},
        "student": {"model": "models/student", "dtype": "float32"},
        "data": {"root": "data", "max_length": 512},
        "cache": {"path": "top_k.zarr", "generate_max_tokens": regime.longest},
        "training": {
            "max_steps": sizes.steps,
            "per_device_train_batch_size": sizes.batch,
            "per_device_eval_batch_size": 35,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": max(1, sizes.steps // 5),
            "report_to": "none",
        },
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
