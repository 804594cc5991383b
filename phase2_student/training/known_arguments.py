"""Every field of `transformers.TrainingArguments`: it has an effect in training here, or it is refused with the reason.

    refusal("label_smoothing_factor", 0.1)     # None: it may be given

A field in neither table comes from a newer transformers and is refused until somebody has checked it. One test goes through
all fields of the installed version; another shows for each accepted field that it has an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_all_start_methods
from typing import Any

ACTS = frozenset({
    "output_dir",
    # batches and their order
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "train_sampling_strategy",
    "num_train_epochs", "max_steps", "seed", "data_seed", "full_determinism",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order",
    # steps
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "average_tokens_across_devices",
    # arithmetic and memory
    "bf16", "fp16", "tf32", "use_cpu", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_empty_cache_steps",
    # several processes
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
    "fsdp", "fsdp_config", "deepspeed",
    # logging and trackers
    "logging_strategy", "logging_steps", "logging_first_step", "include_num_input_tokens_seen", "disable_tqdm", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id",
    # validations and checkpoints
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps", "save_total_limit",
})  # fmt: skip
"""Fields that have the effect that transformers documents."""

_LOSS = "the loss is the section `loss` of the recipe"
_LOOP = "it belongs to the stock validation loop; here validation sums over the whole set"
_PUSH = "training publishes nothing; use fs-student publish"
_BEST = "best/ is the student with the lowest validation loss, if any was measured"
_COMPILED = "the loss computes its gradients inside the student's forward, which is not compiled"
_LIGER = "its kernels would replace those that the first batch was checked with; the loss is fused already"
_COMMAND = "fs-student train trains and validates, fs-student eval measures answers"
_DEAL = "batches are dealt out by FirstSight, so that a step has the same samples for any number of processes"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0.0,), _LOSS),
    "optim_args": ((None,), "few optimisers read it, and those ignore keys that they do not know"),
    "optim_target_modules": ((None,), "optimisers that need it (GaLore, APOLLO) were not tried here"),
    "bf16_full_eval": ((False,), "validations compute as the training does: bf16, fp16"),
    "fp16_full_eval": ((False,), "validations compute as the training does: bf16, fp16"),
    "torch_compile": ((False,), _COMPILED),
    "torch_compile_backend": ((None,), _COMPILED),
    "torch_compile_mode": ((None,), _COMPILED),
    "use_liger_kernel": ((False,), _LIGER),
    "liger_kernel_config": ((None,), _LIGER),
    "use_cache": ((False,), "training has no use for cached keys and values"),
    "auto_find_batch_size": ((False,), "a run is bound to its batch; fs-student plan says which one fits"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite stops the run before it is logged"),
    "prediction_loss_only": ((False,), _LOOP),
    "eval_do_concat_batches": ((True,), _LOOP),
    "eval_use_gather_object": ((False,), _LOOP),
    "eval_accumulation_steps": ((None,), _LOOP),
    "include_for_metrics": (([],), _LOOP),
    "batch_eval_metrics": ((False,), _LOOP),
    "save_only_model": (
        (False,),
        "without optimiser and schedule a run cannot be continued; final/ holds only the model",
    ),
    "save_on_each_node": ((False,), "a run has one directory, which all nodes must share"),
    "enable_jit_checkpoint": ((False,), "SIGTERM saves a checkpoint anyway"),
    "push_to_hub": ((False,), _PUSH),
    "hub_token": ((None,), "a recipe is published with its run; give the token as HF_TOKEN to fs-student publish"),
    "hub_private_repo": ((None,), _PUSH),
    "hub_model_id": ((None,), _PUSH),
    "hub_strategy": (("every_save",), _PUSH),
    "hub_always_push": ((False,), _PUSH),
    "hub_revision": ((None,), _PUSH),
    "load_best_model_at_end": ((False,), "best/ holds the best student, final/ the last one"),
    "metric_for_best_model": ((None, "loss", "eval_loss"), _BEST),
    "greater_is_better": ((None, False), _BEST),
    "ignore_data_skip": ((False,), "a run continues with the sample that comes next"),
    "restore_callback_states_from_checkpoint": ((False,), "a run has only its own callbacks, which keep no state"),
    "accelerator_config": ((None,), _DEAL),
    "parallelism_config": (
        (None,),
        "only DDP and FSDP2 were tested (examples/accelerate), no other way to split a model",
    ),
    "dataloader_drop_last": ((False,), "every sample is seen in every epoch; the last batch is smaller"),
    "remove_unused_columns": ((False,), "samples have no columns"),
    "label_names": ((None, []), "samples have no columns"),
    "length_column_name": (("length",), "lengths are taken from the samples"),
    "debug": (("", []), "a step that is not finite stops the run and names its samples"),
    "skip_memory_metrics": ((True,), "fs-student plan estimates the memory, fs-student eval measures it"),
    "do_train": ((True,), _COMMAND),
    "do_eval": ((True,), _COMMAND),
    "do_predict": ((False,), _COMMAND),
    "resume_from_checkpoint": ((None,), "a run continues from its newest whole checkpoint by itself"),
    "local_rank": ((-1,), "torchrun and accelerate launch say which process is which"),
}
"""Fields that would do nothing or harm: the values that are accepted because they state what is true anyway, and the reason."""

_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")

_VALUES: dict[str, tuple[Any, str]] = {
    "per_device_train_batch_size": (lambda value: value >= 1, "must be 1 or more"),
    "per_device_eval_batch_size": (lambda value: value >= 1, "must be 1 or more"),
    "gradient_accumulation_steps": (lambda value: value >= 1, "must be 1 or more"),
    "max_steps": (lambda value: value == -1 or value >= 1, "must be 1 or more, or -1: num_train_epochs decides"),
    "num_train_epochs": (lambda value: value > 0, "must be more than 0"),
    "learning_rate": (lambda value: value >= 0, "must not be negative"),
    "warmup_steps": (lambda value: value >= 0, "must not be negative"),
    "max_grad_norm": (lambda value: value >= 0, "must not be negative; 0: gradients are not clipped"),
    "logging_steps": (lambda value: value > 0, "must be more than 0"),
    "save_steps": (lambda value: value > 0, "must be more than 0"),
    "eval_steps": (lambda value: value is None or value > 0, "must be more than 0"),
    "eval_delay": (lambda value: value >= 0, "must not be negative"),
    "save_total_limit": (lambda value: value is None or value >= 1, "must be 1 or more, or null: all are kept"),
    "dataloader_num_workers": (lambda value: value >= 0, "must be 0 or more"),
    "torch_empty_cache_steps": (lambda value: value is None or value >= 1, "must be 1 or more, or null"),
    **{
        name: (lambda value: 0 <= value < 1, "must be 0 or more, and less than 1")
        for name in ("adam_beta1", "adam_beta2")
    },
    "adam_epsilon": (lambda value: value >= 0, "must not be negative"),
    "weight_decay": (lambda value: value >= 0, "must not be negative"),
    "neftune_noise_alpha": (lambda value: value is None or value >= 0, "must not be negative"),
    **{
        name: (lambda value: value in _LOG_LEVELS, f"must be one of {', '.join(_LOG_LEVELS)}")
        for name in ("log_level", "log_level_replica")
    },
    "dataloader_multiprocessing_context": (
        lambda value: value is None or value in get_all_start_methods(),
        f"must be one of {', '.join(get_all_start_methods())}",
    ),
    "optim": (
        lambda value: not str(getattr(value, "value", value)).startswith("schedule_free"),
        "must not be schedule-free: best/, final/ and validations would have the weights that it moves, not its average of them",
    ),
    "seed": (lambda value: 0 <= value < 2**32, "must lie between 0 and 2^32 - 1"),
    "data_seed": (lambda value: value is None or 0 <= value < 2**32, "must lie between 0 and 2^32 - 1"),
    "save_strategy": (lambda value: value != "best", f"must be steps, epoch or no: {_BEST}, whatever is saved"),
    "lr_scheduler_type": (
        lambda value: value != "greedy" and value != "reduce_lr_on_plateau",
        "must be a schedule of steps: one that depends on validations could not be continued to the same result",
    ),
}
"""Fields that have an effect, and what their values must be besides having the right type."""


_NEEDS: dict[str, tuple[str, Any, str]] = {
    "logging_steps": ("logging_strategy", lambda value: value == "steps", "steps"),
    "eval_steps": ("eval_strategy", lambda value: value == "steps", "steps"),
    "save_steps": ("save_strategy", lambda value: value == "steps", "steps"),
    "dataloader_persistent_workers": ("dataloader_num_workers", lambda value: value > 0, "1 or more"),
    "dataloader_prefetch_factor": ("dataloader_num_workers", lambda value: value > 0, "1 or more"),
    "dataloader_multiprocessing_context": ("dataloader_num_workers", lambda value: value > 0, "1 or more"),
    **{
        name: ("optim", lambda value: any(part in value for part in ("adam", "lion", "ademamix")), "an Adam or a Lion")
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
    },
}
"""Fields that have an effect only together with another one."""


def lacking(training: dict[str, Any], defaults: dict[str, Any]) -> str | None:
    """The message for a key that has no effect without another, with what that must be; None if there is no such key.

    Args:
        training: the recipe's `training` section.
        defaults: the values of keys that the recipe does not state.
    """
    for name, (other, allows, words) in _NEEDS.items():
        value = training.get(other, defaults.get(other))
        if training.get(name) not in (None, False) and not allows(getattr(value, "value", value)):
            return (
                f"training.{name}: has no effect unless training.{other} is {words}, got {value!r}; change one of them"
            )
    return None


_NAMING = {"wandb", "trackio", "comet_ml", "mlflow", "dagshub", "swanlab"}
_IDLE: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "num_train_epochs": (lambda training: (training["max_steps"] or 0) > 0, "training.max_steps decides"),
    "data_seed": (lambda training: training["train_sampling_strategy"] == "sequential", "the order is the data's"),
    "fsdp_config": (lambda training: not training["fsdp"], "training.fsdp is not set"),
    **{
        f"{kind}_checkpointing_kwargs": (
            lambda training: not any(training.get(f"{each}_checkpointing") for each in ("activation", "gradient")),
            f"training.{kind}_checkpointing is not set",
        )
        for kind in ("activation", "gradient")
    },
    "run_name": (lambda training: not _reports_to(training, _NAMING), "no tracker in training.report_to reads it"),
    **{
        name: (lambda training: not _reports_to(training, {"trackio"}), "training.report_to does not name trackio")
        for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
    },
}
"""Fields that another one leaves without effect, when that is, and why. They are noted, not refused: the other is often an override."""


def _reports_to(training: dict[str, Any], trackers: set[str]) -> bool:
    named = training["report_to"] or []
    return not trackers.isdisjoint([named] if isinstance(named, str) else named) or named in ("all", ["all"])


def idle(training: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The keys of a recipe that another one leaves without effect, each with the reason. The arguments are those of `lacking`."""
    whole = {**defaults, **training}
    return [
        f"training.{name} ({reason})"
        for name, (is_idle, reason) in _IDLE.items()
        if training.get(name) is not None and is_idle(whole)
    ]


def refusal(name: str, value: Any) -> str | None:
    """Why a value is refused; None if it is accepted.

    Args:
        name: name of a field of the installed `TrainingArguments`.
        value: a value of the field's type.
    """
    if name in REFUSED:
        allowed, reason = REFUSED[name]
        if any(type(value) is type(each) and value == each for each in allowed):
            return None
        return f"is not supported here ({reason}); remove the key"
    if name not in ACTS:
        return "is newer than this FirstSight, which does not know whether it would have an effect; remove the key"
    if name in _VALUES and not _VALUES[name][0](value):
        return _VALUES[name][1]
    return None
