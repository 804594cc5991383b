"""A training run. With a cache the teacher is never loaded and need not exist.

plan = prepare(recipe)
result = train(plan)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

import firstsight
from firstsight.errors import FirstSightError, RecipeError
from firstsight.families.self_check import check_logits, checked_columns
from firstsight.models.loading import backbone_states, gather_weights, load_student
from firstsight.prompting import collate
from phase2_student.loss.objective import Objective
from phase2_student.runs.best import best_loss
from phase2_student.runs.files import replace_directory
from phase2_student.runs.history import read_history
from phase2_student.runs.lock import RunLock, run_lock
from phase2_student.runs.ownership import check_apart
from phase2_student.runs.preprocessing import preprocessing_of
from phase2_student.runs.run_directory import begin_run
from phase2_student.training.packing import packed_states
from phase2_student.training.prepare import Plan
from phase2_student.training.student import LossSettings, save_student, with_distillation_forward
from phase2_student.training.weights import optimizer_class, prepare_weights, weights_dtype


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a run ended."""

    output_dir: Path
    steps: int
    seconds: float
    """Time of this call; 0 if nothing was left to do."""
    best_validation_loss: float | None
    """None: there was no finite validation loss."""
    finished: bool
    """False: stopped by a signal after a checkpoint; the same call continues from there."""
    signal: int | None = None
    """Number of the signal that stopped it."""

    @property
    def stopped_text(self) -> str:
        """How it was stopped and how to continue, in words."""
        by = "Ctrl-C" if self.signal == SIGINT else "SIGTERM"
        return f"stopped by {by} after step {self.steps:,}, which was saved; the same command continues from there"

    @property
    def best_text(self) -> str:
        """The best validation loss in words."""
        found = self.best_validation_loss
        return "no validation loss" if found is None else f"best validation loss {found:.4f}"

    @property
    def students(self) -> list[Path]:
        """Directories of the students: the best by validation loss, if any was measured, and the last."""
        return [path for name in ("best", "final") if (path := self.output_dir / name).is_dir()]


def train(plan: Plan, *, overwrite: bool = False) -> TrainResult:
    """Run the training. Continues from the newest complete checkpoint if there is one, and does nothing if the run is finished.

    Args:
        plan: from `prepare`.
        overwrite: delete the run in the output directory first.

    Raises:
        RecipeError: the output directory holds the run of another recipe.
        TrainingError: a loss or a gradient is not finite; nothing was trained on it.
        OSError: the disk is full.
    """
    main = plan.arguments.process_index == 0
    with _place(plan, overwrite=overwrite, main=main) as lock:
        return _finished(plan.recipe.output_dir) if lock is _FINISHED else _run(plan, lock, main)


_FINISHED = object()
"""Stands for a lock if nothing is left to do."""


@contextmanager
def _place(plan: Plan, *, overwrite: bool, main: bool) -> Iterator[Any]:
    """Check and own the directory of the run during a block; process 0 does it for all processes.

    Yields:
        The `RunLock` of process 0, None in others, or `_FINISHED`.
    """
    with ExitStack() as stack:
        lock: Any = None
        refusal: Exception | None = None
        if main:
            try:
                lock = _owned(plan, stack, overwrite=overwrite)
            except (FirstSightError, OSError) as error:
                refusal = error
        said = [(lock is _FINISHED, None if refusal is None else str(refusal))]
        broadcast_object_list(said)
        finished, words = said[0]
        if refusal is not None:
            raise refusal
        if words is not None:
            raise RecipeError(words)
        yield _FINISHED if finished else lock


def _owned(plan: Plan, stack: ExitStack, *, overwrite: bool) -> Any:
    recipe = plan.recipe
    check_apart(recipe.output_dir, recipe.directory)
    # first without a lock: a run that is finished or another's may be on a read-only disk
    if not overwrite and plan.check_run(overwrite=False):
        return _FINISHED
    lock = stack.enter_context(run_lock(recipe.output_dir))
    if plan.check_run(overwrite=overwrite):
        return _FINISHED
    begin_run(recipe.output_dir, recipe, plan.identity(), plan.facts())
    preprocessing_of(recipe, plan.source.prompter).write(recipe.output_dir)
    return lock


def _run(plan: Plan, lock: RunLock | None, main: bool) -> TrainResult:
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from phase2_student.training.callbacks.epoch_end import EpochEnd
    from phase2_student.training.callbacks.history import HistoryCallback
    from phase2_student.training.callbacks.progress import Bar, ValidationLines
    from phase2_student.training.callbacks.run_log import RunLog
    from phase2_student.training.callbacks.signals import StopOnSignal
    from phase2_student.training.checkpointing import checkpoint_to_resume, told_of_full_disk
    from phase2_student.training.trainer import DistillationTrainer

    recipe, arguments, prompter = plan.recipe, plan.arguments, plan.source.prompter
    output_dir = recipe.output_dir
    preprocessing = preprocessing_of(recipe, prompter)
    complete = plan.source.completion(arguments.device)
    model = _student(plan)

    def save(directory: Path | None) -> None:
        if directory is None:
            gather_weights(model)
            return
        with told_of_full_disk(directory, "the student"):
            save_student(model, prompter.processor, directory, getattr(torch, recipe.student.dtype))
            preprocessing.write(directory)

    first = f"FirstSight {firstsight.__version__}, {plan.objective_text}; {plan.precision}"
    stop = StopOnSignal(processes=arguments.world_size, main=main)
    history = HistoryCallback(output_dir, save, plan.objective_text)
    # another plan that was prepared or trained in this process may compute in another precision
    AcceleratorState._reset_state()
    with RunLog(output_dir, first, lock=lock, main=main) as log, stop:
        trainer = DistillationTrainer(
            model=model,
            args=arguments,
            complete=complete,
            data_collator=plan.source.collator(prompter.blank() if arguments.world_size > 1 else None),
            train_dataset=plan.train,
            eval_dataset=plan.validation if len(plan.validation) else None,
            optimizer_cls_and_kwargs=optimizer_class(recipe.student, arguments),
            history=history,
            stop=stop,
            callbacks=[log, stop, EpochEnd(stop), history, ValidationLines()],
        )
        trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
        if not arguments.disable_tqdm:
            trainer.add_callback(Bar())
        outcome = trainer.train(resume_from_checkpoint=checkpoint_to_resume(output_dir, main=main))
    finished = trainer.state.global_step >= trainer.state.max_steps
    if finished:
        replace_directory(output_dir / "final", save, main=main)
    return TrainResult(
        output_dir=output_dir,
        steps=trainer.state.global_step,
        seconds=outcome.metrics["train_runtime"],
        best_validation_loss=best_loss(row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row),
        finished=finished,
        signal=stop.due,
    )


def _student(plan: Plan) -> Any:
    """The student ready for training, with the loss in its forward."""
    recipe = plan.recipe
    settings = LossSettings(
        objective=Objective.of_recipe(recipe.loss),
        unshared_ids=torch.from_numpy((~plan.source.shared_mask()).nonzero()[0]),
    )
    stock = load_student(plan.directory, recipe.student, dtype=weights_dtype(recipe.student))
    stock.config.use_cache = False
    _self_check(stock, plan)
    wrapped = with_distillation_forward(stock, settings, padding_free=recipe.student.padding_free)
    return prepare_weights(wrapped, recipe.student, seed=plan.arguments.seed)


def _self_check(model: Any, plan: Plan) -> None:
    """Compare our logits of a training sample with the stock student's, in the training run's precision. Raises ModelError."""
    arguments, section = plan.arguments, plan.recipe.student
    sharded = arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharded and section.attn_implementation == "flash_attention_2":
        print(
            "the self-check of the student is left out, because it is on the CPU until it is sharded", file=sys.stderr
        )
        return
    if not sharded:  # the trainer moves it there anyway; a student that will be sharded may be too large for one GPU
        model.to(arguments.device)
    prompter = plan.source.prompter
    _, sample = plan.train.samples[0]
    encoded = prompter.encode(sample, [])
    columns = checked_columns(len(encoded.input_ids))
    inputs = {name: tensor.to(model.device) for name, tensor in collate([encoded], prompter.pad_id).items()}
    states = packed_states if section.padding_free else backbone_states
    half = torch.bfloat16 if arguments.bf16 else torch.float16
    model.eval()
    with torch.autocast(model.device.type, half, enabled=arguments.bf16 or arguments.fp16):
        with torch.inference_mode():
            states_nD = states(model, inputs, torch.zeros_like(columns), columns)
            with torch.autocast(model.device.type, enabled=False):
                head_VD = model.get_output_embeddings().weight.float()
                ours_nV = torch.nn.functional.linear(states_nD.float(), head_VD)
        check_logits(model, inputs, columns, ours_nV, role="student")


def _finished(output_dir: Path) -> TrainResult:
    history = read_history(output_dir)
    return TrainResult(
        output_dir=output_dir,
        steps=history.last_step,
        seconds=0.0,
        best_validation_loss=history.best_validation_loss,
        finished=True,
    )
