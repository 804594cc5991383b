"""A training run: read -> join -> loss -> train. On a cache the teacher is never loaded; it need not be there.

plan = prepare(recipe)     # data, cache, tokenizer: everything that can be refused is refused here
result = train(plan)
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstsight.data.samples import load_samples
from firstsight.families.self_check import check_logits, checked_columns
from firstsight.identity import cache_spec, model_name, student_identity
from firstsight.models import backbone_states, gather_weights, head_rows, load_config, load_student, resolve_directory
from firstsight.pair import Pair, load_pair, load_prompter
from firstsight.prompting import Prompter, collate
from firstsight.recipe import Recipe
from phase2_student.data.dataset import Collator, DistillationDataset
from phase2_student.data.online_data import OnlineCollator, OnlineDataset
from phase2_student.runs.checkpoints import newest_whole
from phase2_student.runs.files import replace_directory
from phase2_student.runs.run_directory import begin_run, check_run, run_identity
from phase2_student.training.arguments import training_arguments
from phase2_student.training.history import HistoryCallback
from phase2_student.training.student import LossSettings, save_student, with_distillation_forward
from phase2_student.training.weights import (
    check_weights,
    optimizer_class,
    precision_text,
    prepare_weights,
    weights_dtype,
)
from storage.errors import SpecMismatch
from storage.reader import Cache, open_cache


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has passed every check which needs no weights."""

    recipe: Recipe
    arguments: Any
    """`transformers.TrainingArguments`."""
    directory: Path
    """Of the student base."""
    prompter: Prompter
    targets: Cache | Pair
    """Where soft targets come from: the cache, or the teacher in memory."""
    train: DistillationDataset | OnlineDataset
    validation: DistillationDataset | OnlineDataset

    @property
    def online(self) -> bool:
        """The teacher is kept in memory."""
        return isinstance(self.targets, Pair)

    @property
    def shared(self) -> NDArray[np.bool_]:
        """[V] rows of the student's head that the teacher's vocabulary has, too."""
        return self.targets.alignment.shared if isinstance(self.targets, Pair) else self.targets.shared_mask()


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a run ended."""

    output_dir: Path
    steps: int
    seconds: float
    """Of this call; 0 where nothing was left to do."""
    best_validation_loss: float
    finished: bool
    """False: stopped by SIGTERM after a checkpoint; the same call goes on from there."""


def prepare(recipe: Recipe, *, online: bool = False, progress: bool = True, like: Plan | None = None) -> Plan:
    """Check data, targets and student against each other.

    Args:
        recipe: of the run.
        online: targets come from the teacher in memory, and no cache is needed.
        progress: show a bar.
        like: another run on a cache: what both have in common is taken from it.

    Raises:
        FirstSightError: bad recipe or data, samples without targets, target ids that differ.
        CacheError: no cache, or one of another student.
    """
    if like is not None and not online and _same_samples(recipe, like):
        T = recipe.loss.temperature
        check_weights(recipe, load_config(like.directory, recipe.student))
        return replace(
            like,
            recipe=recipe,
            arguments=training_arguments(recipe, progress=progress),
            train=like.train.at(T) if isinstance(like.train, DistillationDataset) else like.train,
            validation=like.validation.at(T) if isinstance(like.validation, DistillationDataset) else like.validation,
        )
    train_samples = load_samples(recipe.file("train"), recipe.data_root)
    validation_samples = load_samples(recipe.file("validation"), recipe.data_root)
    directory = resolve_directory(recipe, recipe.student)
    arguments = training_arguments(recipe, progress=progress)
    config = load_config(directory, recipe.student)
    check_weights(recipe, config)
    if online:
        pair = load_pair(recipe)
        return Plan(
            recipe=recipe,
            arguments=arguments,
            directory=directory,
            prompter=pair.student,
            targets=pair,
            train=OnlineDataset(train_samples, pair),
            validation=OnlineDataset(validation_samples, pair),
        )
    cache = open_cache(recipe.cache_location)
    prompter = load_prompter(directory, recipe.student, recipe.data)
    _check_spec(recipe, cache, prompter, head_rows(config))
    options: dict[str, Any] = {"temperature": recipe.loss.temperature, "progress": progress}
    return Plan(
        recipe=recipe,
        arguments=arguments,
        directory=directory,
        prompter=prompter,
        targets=cache,
        train=DistillationDataset(train_samples, prompter, cache, **options),
        validation=DistillationDataset(validation_samples, prompter, cache, **options),
    )


def _same_samples(recipe: Recipe, plan: Plan) -> bool:
    """The two differ in nothing that the joined samples depend on."""
    other = plan.recipe
    return not plan.online and all(
        getattr(recipe, name) == getattr(other, name) for name in ("directory", "student", "data", "cache")
    )


def _check_spec(recipe: Recipe, cache: Cache, prompter: Prompter, rows: int) -> None:
    """The part of the spec that phase 2 can know: student tokens and roles, head rows, and the teacher's name as the recipe has it."""
    spec = cache.spec
    wanted: dict[str, Any] = {"vocabulary_size": rows}
    wanted.update({f"student.{name}": value for name, value in student_identity(prompter).items()})
    cached = {"vocabulary_size": spec["vocabulary_size"], **{f"student.{k}": v for k, v in spec["student"].items()}}
    differences = [(name, cached.get(name), value) for name, value in wanted.items() if cached.get(name) != value]
    if differences:
        raise SpecMismatch(cache.location, differences)


def is_finished(plan: Plan) -> bool:
    """Whether nothing is left to do; refuses an output directory that holds the run of another recipe."""
    return check_run(plan.recipe.output_dir, _identity(plan), overwrite=False)


def train(plan: Plan, *, overwrite: bool = False) -> TrainResult:
    """Run the training; continues from the newest whole checkpoint where there is one, and does nothing if it is finished.

    Raises:
        RecipeError: the output directory holds the run of another recipe.
        OSError: the disk is full.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from phase2_student.training.online import OnlineTeacher, OnlineTrainer
    from phase2_student.training.progress import Bar, ValidationLines
    from phase2_student.training.trainer import DistillationTrainer, StopOnSignal

    recipe, arguments = plan.recipe, plan.arguments
    output_dir = recipe.output_dir
    identity = _identity(plan)
    with arguments.main_process_first(desc="run directory"):
        main = arguments.process_index == 0
        if check_run(output_dir, identity, overwrite=overwrite and main):
            return _finished(output_dir)
        if main:
            begin_run(output_dir, recipe, identity, _facts(plan))
    dtype = getattr(torch, recipe.student.dtype)
    teacher = None
    if isinstance(plan.targets, Pair):
        teacher = OnlineTeacher(plan.targets, recipe.teacher, arguments.device)
    settings = LossSettings(
        temperature=recipe.loss.temperature,
        alpha=recipe.loss.alpha,
        tail=recipe.loss.tail,
        unshared_ids=torch.from_numpy((~plan.shared).nonzero()[0]),
        teacher_head=None if teacher is None else teacher.head,
    )
    stock = load_student(plan.directory, recipe.student, dtype=weights_dtype(recipe.student))
    stock.config.use_cache = False
    _self_check(stock, plan)
    wrapped = with_distillation_forward(stock, settings, padding_free=recipe.student.padding_free)
    model = prepare_weights(wrapped, recipe.student, seed=arguments.seed)

    def save(directory: Path | None) -> None:
        if directory is None:
            gather_weights(model)
        else:
            save_student(model, plan.prompter.processor, directory, dtype)

    stop = StopOnSignal()
    options: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "data_collator": _collator(plan),
        "train_dataset": plan.train,
        "eval_dataset": plan.validation,
        "optimizer_cls_and_kwargs": optimizer_class(recipe.student, arguments),
        "callbacks": [HistoryCallback(output_dir, save), stop, ValidationLines()],
    }
    trainer = DistillationTrainer(**options) if teacher is None else OnlineTrainer(**options, teacher=teacher)
    trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(Bar())
    outcome = trainer.train(resume_from_checkpoint=_checkpoint(output_dir, main))
    if not stop.received:
        replace_directory(output_dir / "final", save, main=main)
    return TrainResult(
        output_dir=output_dir,
        steps=trainer.state.global_step,
        seconds=outcome.metrics["train_runtime"],
        best_validation_loss=_best_loss(trainer.state.log_history),
        finished=not stop.received,
    )


def _self_check(model: Any, plan: Plan) -> None:
    """Our logits of a training sample against the stock student's. Raises ModelError."""
    if plan.arguments.fsdp == []:
        model.to(plan.arguments.device)
    _, sample = plan.train.samples[0]
    encoded = plan.prompter.encode(sample, [])
    columns = checked_columns(len(encoded.input_ids))
    inputs = {name: tensor.to(model.device) for name, tensor in collate([encoded], plan.prompter.pad_id).items()}
    model.eval()
    with torch.inference_mode():
        states_nD = backbone_states(model, inputs, torch.zeros_like(columns), columns)
        ours_nV = torch.nn.functional.linear(states_nD.float(), model.get_output_embeddings().weight.float())
    check_logits(model, inputs, columns, ours_nV, role="student")


def _collator(plan: Plan) -> Collator | OnlineCollator:
    pad_id = plan.prompter.pad_id
    blank = plan.prompter.blank() if plan.arguments.world_size > 1 else None
    if isinstance(plan.targets, Pair):
        return OnlineCollator(pad_id, plan.targets.teacher.pad_id, blank)
    return Collator(pad_id, blank)


def _checkpoint(output_dir: Path, main: bool) -> str | None:
    """The checkpoint to go on from; process 0 reads its files, and says what it passes over."""
    from accelerate.utils import broadcast_object_list

    found = newest_whole(output_dir, lambda line: print(line, file=sys.stderr)) if main else None
    names = [None if found is None else str(found)]
    broadcast_object_list(names)
    return names[0]


def _finished(output_dir: Path) -> TrainResult:
    history = json.loads((output_dir / "training_history.json").read_text(encoding="utf-8"))
    losses = [row["validation"]["loss"] for row in history if row["validation"]]
    return TrainResult(
        output_dir=output_dir,
        steps=history[-1]["step"],
        seconds=0.0,
        best_validation_loss=min(losses, default=float("nan")),
        finished=True,
    )


def _best_loss(log: list[dict[str, Any]]) -> float:
    return min((entry["eval_loss"] for entry in log if "eval_loss" in entry), default=float("nan"))


def precision(plan: Plan) -> str:
    """Which arithmetic a run uses, in words."""
    return precision_text(plan.recipe.student, plan.arguments)


def _identity(plan: Plan) -> dict[str, Any]:
    arguments = plan.arguments
    return run_identity(
        plan.recipe,
        targets=_target_identity(plan),
        sample_keys=[key for key, _ in plan.train.samples],
        global_batch=arguments.per_device_train_batch_size
        * arguments.gradient_accumulation_steps
        * arguments.world_size,
        seed=arguments.seed,
    )


def _target_identity(plan: Plan) -> dict[str, Any]:
    """What the targets are; of a teacher in memory what a cache of it would be bound to."""
    pair = plan.targets
    if not isinstance(pair, Pair):
        return {"targets": "cache", "cache digest": pair.digest}
    spec = cache_spec(
        plan.recipe,
        teacher_directory=pair.directory,
        teacher=pair.teacher,
        student=pair.student,
        alignment=pair.alignment,
    )
    del spec["teacher"]["batch_tokens"]  # the teacher's batch is the student's
    return {
        "targets": "online",
        **{f"teacher.{name}": value for name, value in spec["teacher"].items()},
        "alignment": spec["alignment"]["digest"],
    }


def _facts(plan: Plan) -> dict[str, Any]:
    cache = None if isinstance(plan.targets, Pair) else plan.targets
    return {
        "student": model_name(plan.recipe, plan.recipe.student),
        "teacher": model_name(plan.recipe, plan.recipe.teacher) if plan.online else None,
        "data_root": str(plan.recipe.data_root),
        "cache": None if cache is None else cache.location,
        "cache_digest": None if cache is None else cache.digest,
        "precision": precision(plan),
        "seed": plan.arguments.seed,
        "processes": plan.arguments.world_size,
        "train_samples": len(plan.train),
        "validation_samples": len(plan.validation),
        "skipped_samples": plan.train.skipped + plan.validation.skipped,
    }
