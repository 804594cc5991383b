"""What a training run needs before weights are loaded: everything that can be refused is refused here.

plan = prepare(recipe)               # data, targets, tokenizer, checked against each other
other = prepare(recipe, like=plan)   # takes over what both have in common
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from firstsight.console import NAMED, left_out_text
from firstsight.data.samples import load_samples
from firstsight.errors import RecipeError
from firstsight.identity import image_settings, model_name, text_digest
from firstsight.models.loading import load_config, resolve_directory, weights_digest
from firstsight.models.quantization import check_stored
from firstsight.recipe import Recipe
from firstsight.vocabulary import table_digest, token_table
from phase2_student.data.source import SampleDataset, TargetSource, open_source
from phase2_student.loss.objective import Objective
from phase2_student.runs.run_directory import BOUND, VALIDATION, WITHOUT, check_run, run_identity
from phase2_student.training.arguments import check_launch, training_arguments, training_defaults
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

    @cached_property
    def bound(self) -> dict[str, str]:
        """What the run is bound to besides the keys of its recipe, by name: digests of the student's files as they are now, and of
        the validation samples, whatever their order.
        """
        prompter, validated = self.source.prompter, self.arguments.eval_strategy != "no" and len(self.validation)
        keys = "\n".join(sorted(key for key, _ in self.validation.samples))
        return {
            "student weights": weights_digest(self.directory),
            "student tokens": table_digest(token_table(prompter.tokenizer)),
            "student chat template": text_digest(prompter.processor.chat_template),
            "student image settings": text_digest(
                json.dumps(image_settings(prompter.processor, prompter.family), sort_keys=True)
            ),
            VALIDATION: text_digest(keys) if validated else WITHOUT,
        }

    def check(self) -> None:
        """Raise RecipeError for what neither recipe nor data alone shows: how it was started, and splits without a part in the loss."""
        check_launch(self.arguments)
        self._check_weighed()

    def _check_weighed(self) -> None:
        objective, collate = Objective.of_recipe(self.recipe.loss), self.source.collator()
        splits = {"training": self.train}
        if self.arguments.eval_strategy != "no":
            splits["validation"] = self.validation
        for split, dataset in splits.items():
            if objective.alpha < 1 and any(sample.answer is not None for _, sample in dataset.samples):
                continue  # an answer of the data has labels; no target is read for that
            # encodes samples until it finds one
            batches = (collate([dataset[index]]).targets for index in range(len(dataset)))
            if len(dataset) and not any(objective.weighs(targets.soft_N, targets.hard_N) for targets in batches):
                raise nothing_weighed(self.recipe, split, dataset.samples[0][1].place, len(dataset))

    def check_run(self, *, overwrite: bool) -> bool:
        """Whether the run is finished already; checks as `run_directory.check_run` does."""
        return check_run(
            self.recipe.output_dir,
            self.identity(),
            bound=self.bound,
            defaults=training_defaults(),
            cache_digest=self.source.facts()["cache_digest"],
            recipe_directory=self.recipe.directory,
            overwrite=overwrite,
        )

    def facts(self) -> dict[str, Any]:
        """What `run.json` records besides the identity."""
        return {
            "student": model_name(self.recipe, self.recipe.student),
            BOUND: self.bound,
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
        FirstSightError: bad recipe or data, samples without targets or without a part in the loss, target ids that differ.
        CacheError: the cache was not found, or is for another teacher or student.
    """
    if like is not None and like.online == online and _same_samples(recipe, like.recipe):
        check_weights(recipe, load_config(like.directory, recipe.student))
        source = like.source.at(recipe)
        plan = replace(
            like,
            recipe=recipe,
            arguments=training_arguments(recipe, progress=progress),
            source=source,
            train=source.reused(like.train),
            validation=source.reused(like.validation),
        )
        plan.check()
        return plan
    left_out: list[str] = []
    train_samples, *others = (load_samples(source, left_out=left_out) for source in recipe.sources())
    validation_samples = others[0] if others else []
    directory = resolve_directory(recipe, recipe.student)
    check_stored(directory, recipe.student)
    arguments = training_arguments(recipe, progress=progress)
    check_weights(recipe, load_config(directory, recipe.student))
    source = open_source(recipe, directory, online=online, progress=progress)
    plan = Plan(
        recipe=recipe,
        arguments=arguments,
        directory=directory,
        source=source,
        online=online,
        train=source.dataset(train_samples),
        validation=source.dataset(validation_samples),
        left_out=tuple(left_out),
    )
    plan.check()
    return plan


def nothing_weighed(recipe: Recipe, split: str, place: str, count: int) -> RecipeError:
    """The error for samples of which the loss weighs no position.

    Args:
        recipe: the run's recipe.
        split: `training` or `validation`.
        place: of its first sample.
        count: number of its samples.
    """
    lacks, advice = "soft targets", "set loss.alpha below 1"
    if recipe.loss.alpha == 0:
        lacks = "a label"
        advice = "set loss.alpha above 0, or give labels: fs-teacher answers writes the teacher's answers as rows with labels"
    elif recipe.loss.alpha < 1:
        lacks, advice = "soft targets or a label", "dump again"
    if split == "validation":
        advice += '; or train without validation (training.eval_strategy: "no")'
    return RecipeError(
        f"loss.alpha: is {recipe.loss.alpha:g}, but none of the {counted(count, f'{split} sample')} in {place.rpartition(':')[0]} has "
        f"{lacks}, so the loss would be 0; {advice}"
    )


def is_finished(plan: Plan) -> bool:
    """Whether nothing is left to do. Refuses an output directory that holds the run of another recipe."""
    return plan.check_run(overwrite=False)


def _same_samples(recipe: Recipe, other: Recipe) -> bool:
    """Whether samples and targets of both are the same, except for the temperature."""
    return all(
        getattr(recipe, name) == getattr(other, name) for name in ("directory", "teacher", "student", "data", "cache")
    )
