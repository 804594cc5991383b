"""A grid of runs from one cache: each in a directory of its own, one after the other in this process.

    runs = grid_runs(Path("recipe.yaml"), [], ["temperature=1.5,2,3", "alpha=0.5,0.7"])     # refuses what does not fit
    outcomes = sweep(runs)

What the runs have in common (samples, their checked targets, the tokenizer) is prepared once.
"""

from __future__ import annotations

import gc
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from firstsight.data.entries import Rows
from firstsight.errors import RecipeError
from firstsight.recipe import LossSection, Recipe, load_recipe
from phase2_student.runs.lock import RunInUse
from phase2_student.training.arguments import training_arguments
from phase2_student.training.prepare import Plan, is_finished, prepare
from phase2_student.training.train import TrainResult, train
from storage.wording import counted

VARIED = ("loss", "training", "student")
"""Sections that a grid may vary: the others are what the cache and its samples depend on."""
CACHE = "cache.path"
"""What it may vary beside them: caches of the same samples, such as those that `fs-teacher derive` makes of one exact dump."""
_BARE = tuple(LossSection.model_fields)


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One point of the grid."""

    name: str
    """Its settings, and the name of its directory."""
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    run: SweepRun
    result: TrainResult | None
    """None: it failed."""
    error: str | None = None

    @property
    def text(self) -> str:
        """In one line."""
        if self.result is None:
            return f"failed: {self.error}"
        if not self.result.finished:
            return self.result.stopped_text
        time = f"in {self.result.seconds:.0f} s" if self.result.seconds else "finished before"
        return f"{counted(self.result.steps, 'step')} {time}, {self.result.best_text}"


def grid_runs(
    config: Path | str,
    overrides: Sequence[str],
    grid: Sequence[str],
    *,
    train: Rows | None = None,
    validation: Rows | None = None,
) -> list[SweepRun]:
    """The runs of a grid, the last key varied fastest.

    Args:
        config: the recipe.
        overrides: `section.key=value` for all runs.
        grid: `key=value,value,...`, the key as in an override; those of the loss need no section.
        train: rows in place of what the recipe names, as `load_recipe` takes them.
        validation: likewise.

    Raises:
        RecipeError: a key or a value that no run could use, or two runs of one name.
    """
    axes = [_axis(text) for text in grid]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RecipeError(f"--grid {twice}: is given twice; list all its values in one")
    root = load_recipe(config, overrides, train=train, validation=validation).output_dir
    last = [key.rpartition(".")[2] for key in keys]
    labels = [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]
    runs: dict[str, SweepRun] = {}
    for values in itertools.product(*(values for _, values in axes)):
        settings = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        name = ",".join(f"{label}={value.replace('/', '-')}" for label, value in zip(labels, values, strict=True))
        try:
            recipe = load_recipe(config, [*overrides, *settings], train=train, validation=validation)
        except RecipeError as error:
            raise RecipeError(f"{error} (in the run {name} of the grid)") from None
        if name in runs:
            raise RecipeError(f"--grid: two runs are named {name}; give each value once")
        training = {**recipe.training, "output_dir": str((root / name).resolve())}
        runs[name] = SweepRun(name=name, recipe=recipe.model_copy(update={"training": training}))
    return list(runs.values())


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    key = key.strip()
    listed = [value.strip() for value in values.split(",")]
    if not equals or not all(listed):
        raise RecipeError(f"--grid {text}: expected key=value,value,... such as temperature=1.5,2,3")
    if key in _BARE:
        key = f"loss.{key}"
    section = key.partition(".")[0]
    if key != CACHE and (section not in VARIED or "." not in key):
        raise RecipeError(
            f"--grid {text}: a grid varies keys of {', '.join(VARIED)}, such as training.learning_rate, {CACHE}, and the bare names "
            f"{', '.join(_BARE)}; got {key!r}"
        )
    if key == "training.output_dir":
        raise RecipeError("--grid training.output_dir: each run gets a directory below training.output_dir anyway")
    return key, listed


def sweep(
    runs: Sequence[SweepRun], *, progress: bool = True, report: Callable[[int, Outcome], None] = lambda *_: None
) -> list[Outcome]:
    """Train every run that is not finished; a run that fails is reported, and the others continue.

    Args:
        runs: of `grid_runs`.
        progress: show bars.
        report: is given the number of each run and how it ended.

    Returns:
        One outcome per run; fewer where a signal stopped the last of them.

    Raises:
        FirstSightError: what any of the runs would refuse, before the first one begins.
        CacheError: no cache, or one of another student.
    """
    plans: list[Plan] = []
    for run in runs:
        location = run.recipe.cache_location
        like = next((plan for plan in plans if plan.recipe.cache_location == location), None)
        plans.append(prepare(run.recipe, progress=progress, like=like))
    for plan in plans:
        is_finished(plan)  # refuses the run of another recipe
    outcomes = []
    for number, (run, plan) in enumerate(zip(runs, plans, strict=True), start=1):
        try:
            # made anew: the last arguments made decide the precision of this process
            arguments = training_arguments(run.recipe, progress=progress)
            result = train(replace(plan, arguments=arguments))
            outcome = Outcome(run=run, result=result)
            (run.recipe.output_dir / "error.txt").unlink(missing_ok=True)
        except RunInUse as error:  # its directory is not ours to write in
            outcome = Outcome(run=run, result=None, error=str(error))
        except Exception as error:  # noqa: BLE001 - it is reported and kept, and the other runs continue
            run.recipe.output_dir.mkdir(parents=True, exist_ok=True)
            (run.recipe.output_dir / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            outcome = Outcome(run=run, result=None, error=f"{type(error).__name__}: {error}")
        outcomes.append(outcome)
        report(number, outcome)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if outcome.result is not None and not outcome.result.finished:
            break
    return outcomes
