"""A grid of runs from one cache: each in a directory of its own, one after the other in this process.

    runs = grid_runs(Path("recipe.yaml"), [], ["temperature=1.5,2,3", "alpha=0.5,0.7"])     # refuses what does not fit
    outcomes = sweep(runs)

What the runs share (samples, their checked targets, the tokenizer) is prepared once.
"""

from __future__ import annotations

import gc
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from firstsight.console import time_text
from firstsight.data.entries import Rows
from firstsight.errors import FirstSightError, RecipeError
from firstsight.recipe import LossSection, Recipe, load_recipe
from phase2_student.runs.lock import RunInUse
from phase2_student.training.prepare import Plan, is_finished, prepare
from phase2_student.training.train import TrainResult, train
from storage.errors import CacheError
from storage.wording import counted

VARIED = ("loss", "training", "student")
"""Sections that a grid may vary; the cache and its samples depend on the other sections."""
CACHE = "cache.path"
"""Another key that a grid may vary: caches of the same samples, such as those that `fs-teacher derive` makes from one exact dump."""
_BARE = tuple(LossSection.model_fields)


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One point of the grid."""

    name: str
    """Its settings, which are also the name of its directory."""
    recipe: Recipe
    idle: tuple[str, ...] = ()
    """Keys of the grid that have no effect with its other settings; the run's recipe leaves them out."""
    points: int = 1
    """Number of points of the grid that it stands for; they differ only in idle keys."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    run: SweepRun
    result: TrainResult | None
    """None: it failed."""
    error: str | None = None

    @property
    def text(self) -> str:
        """The outcome in one line."""
        if self.result is None:
            return f"failed: {self.error}"
        if not self.result.finished:
            return self.result.stopped_text
        time = f"in {time_text(self.result.seconds)}" if self.result.seconds else "finished before"
        return f"{counted(self.result.steps, 'step')} {time}, {self.result.best_text}"


def grid_runs(
    config: Path | str,
    overrides: Sequence[str],
    grid: Sequence[str],
    *,
    train: Rows | None = None,
    validation: Rows | None = None,
) -> list[SweepRun]:
    """The runs of a grid; the last key varies fastest.

    Points that differ only in keys without an effect (beta with a divergence that has none, any key of the divergence if alpha
    is 0) are one run.

    Args:
        config: the recipe.
        overrides: `section.key=value` for all runs.
        grid: `key=value,value,...`, the key as in an override; those of the loss need no section.
        train: rows in place of what the recipe names, as `load_recipe` takes them.
        validation: likewise.

    Raises:
        RecipeError: a key or a value that is not allowed, a key without effect in any run, or two runs of one name or recipe.
    """
    axes = [_axis(text) for text in grid]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RecipeError(f"--grid {twice}: is given twice; list all its values in one --grid")

    def recipe_with(settings: Sequence[str]) -> Recipe:
        return load_recipe(config, [*overrides, *settings], train=train, validation=validation)

    root = recipe_with([]).output_dir
    last = [key.rpartition(".")[2] for key in keys]
    labels = [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]
    runs: dict[str, SweepRun] = {}
    read: dict[str, Recipe] = {}
    names: set[str] = set()
    for values in itertools.product(*(values for _, values in axes)):
        point = dict(zip(keys, values, strict=True))

        def named(idle: Sequence[str], point: dict[str, str] = point) -> str:
            told = {label: point[key] for label, key in zip(labels, keys, strict=True) if key not in idle}
            return ",".join(f"{label}={value.replace('/', '-')}" for label, value in told.items())

        if named([]) in names:
            raise RecipeError(f"--grid: two runs are named {named([])}; give each value once")
        names.add(named([]))
        try:
            idle = _idle(recipe_with, point)
            recipe = recipe_with(_settings(point, idle))
        except RecipeError as error:
            raise RecipeError(f"{error} (in the run {named([])} of the grid)") from None
        name = named(idle)
        if name in runs:
            runs[name] = replace(runs[name], points=runs[name].points + 1)
            continue
        comparable = recipe.model_copy(
            update={"cache": recipe.cache.model_copy(update={"path": recipe.cache_location})}
        )
        if twin := next((other for other, known in read.items() if known == comparable), None):
            raise RecipeError(
                f"--grid: {twin} and {name} are one run, with a value in two spellings; give each value once"
            )
        read[name] = comparable
        training = {**recipe.training, "output_dir": str((root / name).resolve())}
        runs[name] = SweepRun(name=name, recipe=recipe.model_copy(update={"training": training}), idle=idle)
    for key, listed in axes:
        if all(key in run.idle for run in runs.values()):
            recipe_with([f"{key}={listed[0]}"])  # says what is wrong with it
            raise RecipeError(
                f"--grid {key}: has no effect in any run of the grid, since loss.alpha is 0 in all of them"
            )
    return list(runs.values())


def _settings(point: dict[str, str], without: Sequence[str] = ()) -> list[str]:
    return [f"{key}={value}" for key, value in point.items() if key not in without]


def _idle(recipe_with: Callable[[Sequence[str]], Recipe], point: dict[str, str]) -> tuple[str, ...]:
    """Keys of a point of the grid that have no effect with the others."""
    beta = "loss.beta"  # refused with a divergence that has none: its own value is checked where it has an effect
    section = recipe_with(_settings(point, [beta])).loss
    return tuple(
        key for key in point if key.removeprefix("loss.") in section.without_effect and key.startswith("loss.")
    )


def grid_note(runs: Sequence[SweepRun]) -> str:
    """Which points of a grid are one run, in words; empty: none."""
    merged = [run for run in runs if run.points > 1]
    if not merged:
        return ""
    each = "; ".join(
        f"{run.name} stands for {run.points}, in which {' and '.join(run.idle)} {'have' if len(run.idle) > 1 else 'has'} no effect"
        for run in merged
    )
    return f"{sum(run.points for run in runs)} points of the grid are {len(runs)} runs: {each}"


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
        runs: from `grid_runs`.
        progress: show bars.
        report: called with the number of each run and how it ended.

    Returns:
        One outcome per run; fewer if a signal stopped the sweep.

    Raises:
        RecipeError: what any of the runs would refuse, with its name, before the first one begins.
    """
    plans: list[Plan] = []
    for run in runs:
        location = run.recipe.cache_location
        like = next((plan for plan in plans if plan.recipe.cache_location == location), None)
        try:
            plans.append(prepare(run.recipe, progress=progress, like=like))
        except (FirstSightError, CacheError) as error:
            raise RecipeError(f"{error} (in the run {run.name} of the grid)") from None
    for plan in plans:
        is_finished(plan)  # refuses the run of another recipe
    outcomes = []
    for number, (run, plan) in enumerate(zip(runs, plans, strict=True), start=1):
        try:
            result = train(plan)
            outcome = Outcome(run=run, result=result)
            (run.recipe.output_dir / "error.txt").unlink(missing_ok=True)
        except RunInUse as error:  # we may not write into its directory
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
