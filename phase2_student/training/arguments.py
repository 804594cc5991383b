"""The recipe's `training` section as `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from firstsight.errors import RecipeError
from firstsight.recipe import Recipe, check_training
from phase2_student.training.known_arguments import REFUSED, idle, lacking, refusal

DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "train_sampling_strategy": "group_by_length",
    # a step that is not finite stops the run, and the filter would make the host wait after every micro-batch
    "logging_nan_inf_filter": False,
}
_STRATEGIES = {"eval_strategy", "save_strategy", "logging_strategy"}


_VALIDATION = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size")
_TRACKERS = {"tensorboard", "wandb", "trackio"}
_FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": [], "load_best_model_at_end": False}
"""Settings that are the same in every run; `best/` holds the best student in any case."""


def training_arguments(recipe: Recipe, *, progress: bool = True) -> Any:
    """The arguments of a run, with the defaults of this project.

    Args:
        recipe: the run's recipe.
        progress: show bars.

    Raises:
        RecipeError: a name is unknown, or a value does not fit.
    """
    from typing import get_type_hints

    from transformers import TrainingArguments

    check_training(recipe.training)
    # YAML reads `no` without quotes as false
    training = {
        name: "no" if value is False and name in _STRATEGIES else value for name, value in recipe.training.items()
    }
    hints = get_type_hints(TrainingArguments)
    for name, value in training.items():
        try:
            TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise RecipeError(f"training.{name}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None
        if reason := refusal(name, value):
            # a token is not shown
            raise RecipeError(f"training.{name}: {reason}{'' if name == 'hub_token' else f', got {value!r}'}")
    if training.get("ddp_backend") and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise RecipeError(
            "training.ddp_backend: is only for several processes, started by torchrun or accelerate launch; remove it"
        )
    if reason := lacking(training, training_defaults()):
        raise RecipeError(reason)
    report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
    values = {
        **DEFAULTS,
        "disable_tqdm": not progress,
        "report_to": report_to,
        **training,
        **_FIXED,
        "output_dir": str(recipe.output_dir),
    }
    if _no_validations(recipe):
        values = {name: value for name, value in values.items() if name not in _VALIDATION}
        values["eval_strategy"] = "no"
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        # transformers 5.23 renames them, accepts the old names until 6, and warns about those
        new = old.replace("gradient", "activation")
        if new in hints and old in values:
            values.setdefault(new, values.pop(old))
    processes = _processes(values)
    _check_environment(values)
    _check_bf16(values)
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"training: {' '.join(str(error).split())[:240]}") from None
    if arguments.world_size != processes:
        raise RecipeError(
            f"{processes} processes were started (WORLD_SIZE), but they cannot train together on {arguments.device}: each would train "
            "the whole run; start fs-student train with torchrun or accelerate launch, or as one process"
        )
    if arguments.n_gpu > 1:
        # DataParallel would not cut images and answers at the borders of samples
        click.echo(
            f"One of {arguments.n_gpu} GPUs is used; to train on all of them use torchrun or accelerate launch.",
            err=True,
        )
        arguments._n_gpu = 1
    _check_trackers(arguments.report_to)
    _check_optimizer(arguments)
    _check_schedule(arguments)
    return arguments


def check_launch(arguments: Any) -> None:
    """Raise RecipeError for settings that the number of processes that were started does not allow.

    Args:
        arguments: `transformers.TrainingArguments`.
    """
    if arguments.fsdp and arguments.world_size == 1:
        raise RecipeError(
            "training.fsdp: is only for several processes, started by torchrun or accelerate launch, and this is one; remove it"
        )


def _processes(values: dict[str, Any]) -> int:
    """How many processes the launcher started. On CPUs accelerate must be told, else each process would train alone.

    Raises:
        RecipeError: more processes on this machine than it has GPUs.
    """
    import torch

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or values.get("use_cpu"):
        return world
    if not torch.accelerator.is_available():
        values["use_cpu"] = True
    elif torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
        raise RecipeError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on this machine, which has {torch.cuda.device_count()} GPU(s); "
            "start one for each GPU, or set training.use_cpu"
        )
    return world


_SWITCHES = {
    "ACCELERATE_USE_DEEPSPEED": "set training.deepspeed in the recipe instead",
    "ACCELERATE_USE_MEGATRON_LM": "only DDP and FSDP2 were tested (examples/accelerate)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "only DDP and FSDP2 were tested (examples/accelerate)",
}
"""Variables by which accelerate takes another engine than the recipe states, and what to do."""


def _check_environment(values: dict[str, Any]) -> None:
    """Check that `accelerate launch`, or a variable that was exported, changes nothing that the recipe decides.

    Args:
        values: of `transformers.TrainingArguments`.

    Raises:
        RecipeError: a variable of accelerate states something else than the recipe; names the recipe's key.
    """
    stated = "bf16" if values.get("bf16") else "fp16" if values.get("fp16") else "no"
    found = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if found.lower() not in ("", "no", stated):
        instead = (
            f"set training.{found.lower()}: true" if found.lower() in ("bf16", "fp16") else "set training.bf16: true"
        )
        raise RecipeError(
            f"ACCELERATE_MIXED_PRECISION: is {found!r}, but the recipe computes in {_PRECISIONS[stated]}; {instead} in the recipe "
            "instead of accelerate launch --mixed_precision, or unset the variable"
        )
    found = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if found.lower() not in ("", "no"):
        raise RecipeError(
            f"ACCELERATE_DYNAMO_BACKEND: is {found!r}, but compiling is not supported here ({REFUSED['torch_compile'][1]}); unset the "
            "variable, or set it to no"
        )
    for name, instead in _SWITCHES.items():
        on = os.environ.get(name, "false").lower() in ("1", "true", "yes", "on", "y", "t")
        if on and not (name == "ACCELERATE_USE_DEEPSPEED" and values.get("deepspeed")):
            raise RecipeError(f"{name}: is set, but the recipe does not state it; {instead}, or unset the variable")


_PRECISIONS = {"bf16": "bfloat16 (training.bf16)", "fp16": "float16 (training.fp16)", "no": "float32"}


def _check_bf16(values: dict[str, Any]) -> None:
    import torch

    if values.get("bf16") and not values.get("use_cpu") and not torch.accelerator.is_available():
        raise RecipeError(
            "training.bf16: this machine has no GPU; to train on its CPU add --set training.use_cpu=true, or "
            "--set training.bf16=false to compute in float32"
        )


_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that take no warm-up."""


def warmup_note(arguments: Any, steps: int) -> str | None:
    """What is wrong with the warm-up of a training run: it has no effect, or is more than half of the steps. None: nothing is.

    Args:
        arguments: `transformers.TrainingArguments`.
        steps: of the whole training.
    """
    stated, schedule = arguments.warmup_steps, str(getattr(arguments.lr_scheduler_type, "value", ""))
    if schedule in _WITHOUT_WARMUP:
        return f"training.warmup_steps: {stated:g} has no effect with lr_scheduler_type: {schedule}" if stated else None
    warmup = min(steps, arguments.get_warmup_steps(steps))
    if 2 * warmup <= steps or steps <= 1:
        return None
    advice = "; a number below 1 is a share of the steps" if stated >= 1 else ""
    return f"{warmup:,} of {steps:,} steps are warm-up (training.warmup_steps: {stated:g}){advice}"


def _no_validations(recipe: Recipe) -> str | None:
    """Why a training run has no validation; None if it has one."""
    if recipe.data.validation is None:
        return "no validation data"
    return 'training.eval_strategy is "no"' if recipe.training.get("eval_strategy") in (False, "no") else None


def validation_note(recipe: Recipe) -> str | None:
    """What a training run without validation leaves out; None if it has one."""
    why = _no_validations(recipe)
    if why is None:
        return None
    idle = [f"training.{name}" for name in _VALIDATION if recipe.training.get(name) not in (None, False, "no")]
    return f"{why}: there is no validation loss and no best/, the student is final/" + (
        f"; without effect: {', '.join(idle)}" if idle else ""
    )


def idle_note(recipe: Recipe) -> str | None:
    """Which keys of `training` have no effect beside the others, and why; None: all have one."""
    found = idle(recipe.training, training_defaults())
    return f"without effect: {', '.join(found)}" if found else None


def training_defaults() -> dict[str, Any]:
    """The defaults of a recipe's `training` section, by name."""
    from transformers import TrainingArguments

    return {field.name: field.default for field in dataclasses.fields(TrainingArguments)} | DEFAULTS


def _check_trackers(names: list[str]) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise RecipeError(
                f"training.report_to: transformers has no tracker {name!r}; expected none, all, or some of: {known}"
            )
        ours = name in _TRACKERS  # `training_arguments` looks for it in the same way
        if not (importlib.util.find_spec(name) if ours else name in get_available_reporting_integrations()):
            raise RecipeError(f"training.report_to: {name} is not installed; pip install {name}, or remove it")


def _check_optimizer(arguments: Any) -> None:
    """Raise the error of an optimiser that is not installed, or needs what is not supported, before anything is written."""
    import torch
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
    except (ImportError, ValueError, RuntimeError) as error:
        name = getattr(arguments.optim, "value", arguments.optim)
        raise RecipeError(f"training.optim: {name} cannot be used: {' '.join(str(error).split())[:240]}") from None


def _check_schedule(arguments: Any) -> None:
    """Raise the error of a schedule that cannot be made now, not after the student is loaded."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"training.lr_scheduler_kwargs: do not fit {arguments.lr_scheduler_type.value}: {' '.join(str(error).split())[:200]} "
            f"(training.learning_rate is {arguments.learning_rate:g})"
        ) from None
