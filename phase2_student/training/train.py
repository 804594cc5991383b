"""A training run: on a cache the teacher is never loaded; it need not be there.

plan = prepare(recipe)
result = train(plan)
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch

import firstsight
from firstsight.families.self_check import check_logits, checked_columns
from firstsight.models.loading import backbone_states, gather_weights, load_student
from firstsight.prompting import collate
from phase2_student.loss.objective import Objective
from phase2_student.runs.best import best_loss
from phase2_student.runs.files import replace_directory
from phase2_student.runs.preprocessing import preprocessing_of
from phase2_student.runs.run_directory import begin_run
from phase2_student.training.callbacks.history import HistoryCallback
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
    """Time of this call; 0 where nothing was left to do."""
    best_validation_loss: float | None
    """None: no validation has given a finite one."""
    finished: bool
    """False: stopped by a signal after a checkpoint; the same call continues from there."""
    signal: int | None = None
    """The one that stopped it."""

    @property
    def stopped_text(self) -> str:
        """How it was stopped, and how to continue."""
        by = "Ctrl-C" if self.signal == SIGINT else "SIGTERM"
        return f"stopped by {by} after step {self.steps:,}, with a checkpoint; the same command continues"

    @property
    def best_text(self) -> str:
        """The best validation loss in words."""
        found = self.best_validation_loss
        return "no validation loss" if found is None else f"best validation loss {found:.4f}"


def train(plan: Plan, *, overwrite: bool = False) -> TrainResult:
    """Run the training; continues from the newest whole checkpoint where there is one, and does nothing if it is finished.

    Args:
        plan: of `prepare`.
        overwrite: delete the run that is in its place.

    Raises:
        RecipeError: the output directory holds the run of another recipe.
        TrainingError: a loss or a gradient is not finite; nothing was trained on it.
        OSError: the disk is full.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from phase2_student.training.callbacks.progress import Bar, ValidationLines
    from phase2_student.training.callbacks.run_log import RunLog
    from phase2_student.training.callbacks.signals import StopOnSignal
    from phase2_student.training.checkpointing import checkpoint_to_resume
    from phase2_student.training.trainer import DistillationTrainer

    recipe, arguments, prompter = plan.recipe, plan.arguments, plan.source.prompter
    output_dir, identity = recipe.output_dir, plan.identity()
    preprocessing = preprocessing_of(recipe, prompter)
    with arguments.main_process_first(desc="run directory"):
        main = arguments.process_index == 0
        if plan.check_run(overwrite=overwrite and main):
            return _finished(output_dir)
        if main:
            begin_run(output_dir, recipe, identity, plan.facts())
            preprocessing.write(output_dir)
    complete = plan.source.completion(arguments.device)
    model = _student(plan)

    def save(directory: Path | None) -> None:
        if directory is None:
            gather_weights(model)
        else:
            save_student(model, prompter.processor, directory, getattr(torch, recipe.student.dtype))
            preprocessing.write(directory)

    first = f"FirstSight {firstsight.__version__}, {plan.objective_text}; {plan.precision}"
    with RunLog(output_dir, first, main=main) as log, StopOnSignal(processes=arguments.world_size) as stop:
        trainer = DistillationTrainer(
            model=model,
            args=arguments,
            complete=complete,
            data_collator=plan.source.collator(prompter.blank() if arguments.world_size > 1 else None),
            train_dataset=plan.train,
            eval_dataset=plan.validation if len(plan.validation) else None,
            optimizer_cls_and_kwargs=optimizer_class(recipe.student, arguments),
            callbacks=[HistoryCallback(output_dir, save, plan.objective_text), stop, ValidationLines(), log],
        )
        trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
        if not arguments.disable_tqdm:
            trainer.add_callback(Bar())
        outcome = trainer.train(resume_from_checkpoint=checkpoint_to_resume(output_dir, main=main))
    if stop.received is None:
        replace_directory(output_dir / "final", save, main=main)
    return TrainResult(
        output_dir=output_dir,
        steps=trainer.state.global_step,
        seconds=outcome.metrics["train_runtime"],
        best_validation_loss=best_loss(row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row),
        finished=stop.received is None,
        signal=stop.received,
    )


def _student(plan: Plan) -> Any:
    """The student's weights as they are trained, with the loss in its forward."""
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
    """Our logits of a training sample against the stock student's, computed as the training computes. Raises ModelError."""
    arguments, section = plan.arguments, plan.recipe.student
    sharded = arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharded and section.attn_implementation == "flash_attention_2":
        print("the self-check of the student is left out: before it is sharded it is on the CPU", file=sys.stderr)
        return
    if not sharded:  # the trainer places it there anyway; what is to be sharded may be too large for one GPU
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
    history = json.loads((output_dir / "training_history.json").read_text(encoding="utf-8"))
    return TrainResult(
        output_dir=output_dir,
        steps=history[-1]["step"],
        seconds=0.0,
        best_validation_loss=best_loss(row["validation"]["loss"] for row in history if row["validation"]),
        finished=True,
    )
