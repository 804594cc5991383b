"""What a training run needs before weights are loaded: everything that can be refused is refused here.

plan = prepare(recipe)               # data, targets, tokenizer, checked against each other
other = prepare(recipe, like=plan)   # takes over what both have in common
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firstsight.console import NAMED, left_out_text
from firstsight.data.samples import load_samples
from firstsight.identity import model_name
from firstsight.models.loading import load_config, resolve_directory
from firstsight.models.quantization import check_stored
from firstsight.recipe import Recipe
from phase2_student.data.source import SampleDataset, TargetSource, open_source
from phase2_student.loss.objective import Objective
from phase2_student.runs.run_directory import check_run, run_identity
from phase2_student.training.arguments import training_arguments, training_defaults
from phase2_student.training.weights import check_weights, precision_text
from storage.wording import counted


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has passed every check that needs no weights."""

    recipe: Recipe
    arguments: Any
    """`transformers.TrainingArguments`."""
    directory: Path
    """Directory of the student's base model."""
    source: TargetSource
    """The source of the soft targets."""
    online: bool
    """Whether the teacher is kept in memory."""
    train: SampleDataset
    validation: SampleDataset
    left_out: tuple[str, ...] = ()
    """The problem of each row that could not be read, for instance because its images were not found."""

    @property
    def skipped(self) -> list[str]:
        """The reason for each sample of both splits that is left out."""
        reasons = [*self.left_out, *self.train.skipped, *self.validation.skipped]
        return [self.recipe.without_roots(reason) for reason in reasons]

    @property
    def skipped_text(self) -> str:
        """How many samples are left out, with the first reasons."""
        return left_out_text(self.skipped)

    @property
    def precision(self) -> str:
        """The run's number formats and optimiser, in words."""
        return precision_text(self.recipe.student, self.arguments)

    @property
    def objective_text(self) -> str:
        """The objective in words."""
        return Objective.of_recipe(self.recipe.loss).text(self.source.entries, self.source.tail_rank)

    @property
    def unlearned_text(self) -> str:
        """Which answers are not trained on, in words; empty if all are."""
        if self.source.prompter.turns == "all":
            return ""
        count = sum(sample.earlier_answers for _, sample in self.train.samples)
        how = (
            "the cache holds each row's last answer"
            if "turns" not in self.recipe.data.model_fields_set
            else "data.turns: last"
        )
        return (
            f"{counted(count, 'answer before the last one of a row is', 'answers before the last one of a row are')} not trained on "
            f"({how})"
            if count
            else ""
        )

    def identity(self) -> dict[str, Any]:
        """What the weights of the run depend on, by dotted names."""
        arguments = self.arguments
        return run_identity(
            self.recipe,
            targets=self.source.identity([key for key, _ in (*self.train.samples, *self.validation.samples)]),
            defaults=training_defaults(),
            sample_keys=[key for key, _ in self.train.samples],
            global_batch=arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size,
            seed=arguments.seed,
        )

    def check_run(self, *, overwrite: bool) -> bool:
        """Whether the run is finished already; checks as `run_directory.check_run` does."""
        return check_run(
            self.recipe.output_dir,
            self.identity(),
            defaults=training_defaults(),
            cache_digest=self.source.facts()["cache_digest"],
            recipe_directory=self.recipe.directory,
            overwrite=overwrite,
        )

    def facts(self) -> dict[str, Any]:
        """What `run.json` records besides the identity."""
        return {
            "student": model_name(self.recipe, self.recipe.student),
            **self.source.facts(),
            "data_root": str(self.recipe.image_root),
            "objective": self.objective_text,
            "precision": self.precision,
            "seed": self.arguments.seed,
            "processes": self.arguments.world_size,
            "train_samples": len(self.train),
            "validation_samples": len(self.validation),
            "skipped_samples": len(self.skipped),
            "skipped_first": self.skipped[:NAMED],
        }


def prepare(recipe: Recipe, *, online: bool = False, progress: bool = True, like: Plan | None = None) -> Plan:
    """Check data, targets and student against each other.

    Args:
        recipe: the run's recipe.
        online: targets come from the teacher in memory, and no cache is needed.
        progress: show bars.
        like: another run; what both have in common is taken from it.

    Raises:
        FirstSightError: bad recipe or data, samples without targets, target ids that differ.
        CacheError: the cache was not found, or is for another teacher or student.
    """
    if like is not None and like.online == online and _same_samples(recipe, like.recipe):
        check_weights(recipe, load_config(like.directory, recipe.student))
        source = like.source.at(recipe)
        return replace(
            like,
            recipe=recipe,
            arguments=training_arguments(recipe, progress=progress),
            source=source,
            train=source.reused(like.train),
            validation=source.reused(like.validation),
        )
    left_out: list[str] = []
    train_samples, *others = (load_samples(source, left_out=left_out) for source in recipe.sources())
    validation_samples = others[0] if others else []
    directory = resolve_directory(recipe, recipe.student)
    check_stored(directory, recipe.student)
    arguments = training_arguments(recipe, progress=progress)
    check_weights(recipe, load_config(directory, recipe.student))
    source = open_source(recipe, directory, online=online, progress=progress)
    return Plan(
        recipe=recipe,
        arguments=arguments,
        directory=directory,
        source=source,
        online=online,
        train=source.dataset(train_samples),
        validation=source.dataset(validation_samples),
        left_out=tuple(left_out),
    )


def is_finished(plan: Plan) -> bool:
    """Whether nothing is left to do. Refuses an output directory that holds the run of another recipe."""
    return plan.check_run(overwrite=False)


def _same_samples(recipe: Recipe, other: Recipe) -> bool:
    """Whether samples and targets of both are the same, except for the temperature."""
    return all(
        getattr(recipe, name) == getattr(other, name) for name in ("directory", "teacher", "student", "data", "cache")
    )
