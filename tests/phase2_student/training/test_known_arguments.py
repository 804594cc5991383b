"""Every field of TrainingArguments acts in a training here, which is shown for each of them, or is refused with the reason."""

import dataclasses
import json
import logging
import os
import re

import pytest
import torch
import transformers
from run_cases import run
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.training import loaders
from phase2_student.training.arguments import training_arguments
from phase2_student.training.known_arguments import ACTS, REFUSED, refusal
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}

CHANGE_THE_WEIGHTS = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 3,
    "train_sampling_strategy": "sequential",
    "num_train_epochs": 1,
    "max_steps": 2,
    "seed": 7,
    "data_seed": 7,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": ("cosine_with_min_lr", {"min_lr": 5e-4}),
    "warmup_steps": 0,
    "optim": "adafactor",
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1e-3,
    "neftune_noise_alpha": 20.0,
    "bf16": True,
}
"""Field: a value with which a training run of a few steps ends with other weights."""


def steps(world, name, **training):
    """The final weights of a short run, by name; its directory."""
    settings = {"logging_strategy": "steps", **training, "output_dir": f"runs/{name}"}
    options = [part for key, value in settings.items() for part in ("--set", f"training.{key}={json.dumps(value)}")]
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    directory = world / "runs" / name
    return load_file(directory / "final" / "model.safetensors"), directory


@pytest.fixture(scope="module")
def baseline():
    """By the schedule that it was made with."""
    made = {}

    def weights(world, **more):
        key = json.dumps(more)
        if key not in made:
            made[key], _ = steps(world, "baseline", num_train_epochs=2, max_steps=3, **more)
        return made[key]

    return weights


@pytest.mark.parametrize("name", CHANGE_THE_WEIGHTS)
def test_it_changes_the_weights(world, baseline, name):
    value = CHANGE_THE_WEIGHTS[name]
    before = {}
    if name == "lr_scheduler_kwargs":
        schedule, value = value
        before = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": {"min_lr": 0.0}, "warmup_steps": 0}
    changed = {"max_steps": 3, **before, name: value}
    if name == "num_train_epochs":
        changed = {name: value}
    mine, _ = steps(world, "changed", **changed)
    other = baseline(world, **before)
    assert any(not torch.equal(mine[key], other[key]) for key in mine)


LOGS = {
    "logging_strategy": ("epoch", lambda log, _: sum("loss" in row for row in log) == 2),
    "logging_steps": (5, lambda log, _: [row["step"] for row in log if "loss" in row] == [5, 10]),
    "logging_first_step": (True, lambda log, _: 1 in [row["step"] for row in log if "loss" in row]),
    "include_num_input_tokens_seen": (
        "all",
        lambda log, _: all("num_input_tokens_seen" in r for r in log if "loss" in r),
    ),
    "eval_strategy": ("steps", lambda log, _: [row["step"] for row in log if "eval_loss" in row][:3] == [4, 8, 12]),
    "eval_steps": (6, lambda log, _: [row["step"] for row in log if "eval_loss" in row][:2] == [6, 12]),
    "eval_delay": (2, lambda log, _: [row["step"] for row in log if "eval_loss" in row] == [14]),
    "eval_on_start": (True, lambda log, _: [row["step"] for row in log if "eval_loss" in row] == [0, 7, 14]),
    "save_strategy": ("epoch", lambda _, saved: saved == [7, 14]),
    "save_steps": (5, lambda _, saved: saved == [10, 14]),
    "save_total_limit": (1, lambda _, saved: saved == [14]),
}
"""Field: a value, and what must hold of the trainer's log and of the steps with a checkpoint."""


@pytest.mark.parametrize("name", LOGS)
def test_it_changes_what_is_logged_validated_or_saved(world, monkeypatch, name):
    log = []

    class Listener(TrainerCallback):
        def on_log(self, _args, state, _control, logs=None, **_):
            log.append({**logs, "step": state.global_step})

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Listener])
    value, holds = LOGS[name]
    rows = (world / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (world / "seven.jsonl").write_text("".join(rows[:7]))
    recipe = load_recipe(world / "recipe.yaml", [f"data.train={world / 'seven.jsonl'}"])
    one_sample = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.0}
    settings = {**recipe.training, **one_sample, name: value}
    if name == "logging_strategy":
        del settings["logging_steps"]
    if name == "logging_first_step":
        settings["logging_steps"] = 5
    if name == "save_strategy":
        del settings["save_steps"]
    if name == "eval_strategy":
        settings["eval_steps"] = 4
    if name == "eval_steps":
        settings["eval_strategy"] = "steps"
    directory = train(prepare(recipe.model_copy(update={"training": settings}), progress=False)).output_dir
    saved = sorted(int(path.name.partition("-")[2]) for path in directory.glob("checkpoint-*"))
    assert holds(log, saved), (log, saved)


ARRIVES = {
    "output_dir": "runs/elsewhere",
    "per_device_eval_batch_size": 3,
    "full_determinism": True,
    "average_tokens_across_devices": False,
    "tf32": None,
    "use_cpu": True,
    "fp16": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "torch_empty_cache_steps": 3,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 5,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_timeout": 60,
    "fsdp": None,
    "fsdp_config": {"version": 2},
    "deepspeed": None,
    "disable_tqdm": False,
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "report_to": "none",
    "run_name": "mine",
    "project": "mine",
    "trackio_space_id": "me/space",
    "trackio_bucket_id": "me/bucket",
    "trackio_static_space_id": "me/static",
}
"""Fields that the stock trainer, accelerate or a tracker acts on: here it is enough that they arrive as they were given."""
RENAMED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
LOADER = {
    "dataloader_num_workers": (1, "num_workers"),
    "dataloader_pin_memory": (False, "pin_memory"),
    "dataloader_persistent_workers": (True, "persistent_workers"),
    "dataloader_prefetch_factor": (5, "prefetch_factor"),
    "dataloader_multiprocessing_context": ("spawn", "multiprocessing_context"),
    "dataloader_in_order": (False, "in_order"),
}


def arguments(world, **training):
    recipe = load_recipe(world / "recipe.yaml")
    return training_arguments(recipe.model_copy(update={"training": {**recipe.training, **training}}))


@pytest.mark.parametrize("name", ARRIVES)
def test_it_arrives_at_the_stock_trainer(world, name):
    value = ARRIVES[name]
    if name not in FIELDS:
        if os.environ.get("FIRSTSIGHT_CI") == "1":
            pytest.fail(f"{name} is not in this transformers")
        pytest.skip("not in this transformers")
    found = getattr(arguments(world, **{name: value}), name)
    if name == "fsdp_config":
        assert found["version"] == 2
    else:
        assert found == {"output_dir": str(world / "runs/elsewhere"), "report_to": []}.get(name, value)


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_is_the_new_one(world, name):
    found = arguments(world, **{name: RENAMED[name]})
    new = name.replace("gradient", "activation")
    assert (
        getattr(found, new if hasattr(found, new) else name) == RENAMED[name]
    )  # transformers 5.17 has the old one alone


@pytest.mark.parametrize("name", LOADER)
def test_it_reaches_the_loader(world, monkeypatch, name):
    value, key = LOADER[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = {}
    monkeypatch.setattr(loaders, "DataLoader", lambda _dataset, **options: made.update(options))
    found = arguments(world, **{"dataloader_num_workers": 1, name: value})
    loaders.data_loader([1], [[0]], None, found)
    assert made[key] == value
    assert key in DataLoader.__init__.__code__.co_varnames


def test_activation_checkpointing_gives_the_same_weights(world, baseline):
    mine, _ = steps(world, "checkpointed", max_steps=3, gradient_checkpointing=True)
    other = baseline(world)
    for key in mine:
        torch.testing.assert_close(mine[key], other[key], rtol=1e-5, atol=1e-6)


def test_log_level_is_that_of_transformers(world):
    before = transformers.logging.get_verbosity()
    try:
        steps(world, "quiet", max_steps=1, log_level="critical")
        assert transformers.logging.get_verbosity() == logging.CRITICAL
    finally:
        transformers.logging.set_verbosity(before)


# ---- the walk ----


def test_every_field_of_the_installed_transformers_is_sorted():
    unsorted = [name for name in FIELDS if name not in ACTS and name not in REFUSED]
    assert unsorted == [], "fields of this transformers: put each into ACTS, and show that it does, or into REFUSED"
    assert not ACTS & REFUSED.keys()


def test_every_field_that_acts_is_shown_to():
    shown = {*CHANGE_THE_WEIGHTS, *LOGS, *ARRIVES, *RENAMED, *LOADER, "ddp_backend"}  # the last in test_processes.py
    assert shown == ACTS


OTHER = {
    "label_smoothing_factor": 0.1,
    "optim_args": "momentum=0.9",
    "optim_target_modules": "all-linear",
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "liger_kernel_config": {"rope": True},
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["inputs"],
    "hub_token": "hf_abcdefghijklmnop",
    "hub_private_repo": True,
    "hub_model_id": "me/student",
    "hub_strategy": "end",
    "hub_revision": "main",
    "metric_for_best_model": "accuracy",
    "accelerator_config": {"split_batches": True},
    "parallelism_config": None,  # has no value in a recipe's types
    "label_names": ["labels"],
    "length_column_name": "size",
    "debug": "underflow_overflow",
    "resume_from_checkpoint": "runs/nowhere",
    "local_rank": 1,
}


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys() - {"parallelism_config"}))
def test_it_is_refused_with_the_reason_unless_it_says_what_is_so(world, name):
    allowed, reason = REFUSED[name]
    value = OTHER[name] if name in OTHER else not allowed[-1]
    with pytest.raises(RecipeError) as refused:
        arguments(world, **{name: value})
    assert str(refused.value).startswith(f"training.{name}: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    for value in allowed:
        assert refusal(name, value) is None
    default = FIELDS[name].default
    if default is not dataclasses.MISSING and name not in (
        "do_train",
        "do_eval",
        "logging_nan_inf_filter",
        "remove_unused_columns",
    ):
        assert refusal(name, default) is None


def test_a_token_is_not_shown(world):
    done = run("train", "--config", world / "recipe.yaml", "--set", "training.hub_token=hf_abcdefghijklmnop")
    assert done.exit_code == 2
    assert "training.hub_token: looks like a secret" in done.output
    assert "hf_abcd" not in done.output
    assert not (world / "runs").exists()


def test_a_field_that_nobody_has_looked_at_is_refused():
    assert "is newer than this FirstSight" in refusal("a_field_of_transformers_6", 1)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: must be 1 or more, got 0"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size: must be 1 or more, got 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps: must be 1 or more, got -1"),
        ({"num_train_epochs": 0}, "num_train_epochs: must be more than 0, got 0"),
        ({"max_steps": 0}, "max_steps: must be 1 or more, or -1"),
        ({"save_strategy": "best"}, "save_strategy: must be steps, epoch or no"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type: must be a schedule of steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs: do not fit cosine_with_min_lr"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_kwargs: do not fit linear: .*cycles"),
        ({"report_to": "wandbb"}, "report_to: transformers has no tracker 'wandbb'"),
        ({"report_to": ["none", "mlflow"]}, "report_to: "),
        ({"save_total_limit": 0}, "save_total_limit: must be 1 or more"),
        ({"logging_strategy": "epoch"}, "logging_steps: has no effect unless training.logging_strategy is steps"),
        ({"eval_steps": 3}, "eval_steps: has no effect unless training.eval_strategy is steps, got 'epoch'"),
        ({"save_strategy": "epoch"}, "save_steps: has no effect unless training.save_strategy is steps"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor: has no effect unless"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers: has no effect unless"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1: has no effect unless training.optim is an Adam"),
        ({"seed": -1}, "seed: must lie between"),
        ({"optim": "adamx"}, "training: adamx is not a valid OptimizerNames"),
        ({"adam_beta1": 1.5}, "adam_beta1: must be 0 or more, and less than 1, got 1.5"),
        ({"adam_beta2": 1.0}, "adam_beta2: must be 0 or more, and less than 1"),
        ({"adam_epsilon": -1.0}, "adam_epsilon: must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay: must not be negative"),
        ({"neftune_noise_alpha": -1.0}, "neftune_noise_alpha: must not be negative"),
        ({"log_level": "nonsense"}, "log_level: must be one of detail, debug, .*passive, got 'nonsense'"),
        ({"log_level_replica": "loud"}, "log_level_replica: must be one of"),
        (
            {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "nonsense"},
            "dataloader_multiprocessing_context: must be one of .*spawn",
        ),
        ({"optim": "schedule_free_adamw"}, "optim: must not be schedule-free"),
        ({"optim": "schedule_free_sgd"}, "optim: must not be schedule-free"),
        ({"optim": "lomo"}, "optim: lomo cannot be used: .*install"),
        ({"optim": "galore_adamw"}, "optim: galore_adamw cannot be used: "),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            "do not fit polynomial: lr_end .*learning_rate is 1e-08",
        ),
        (
            {"ddp_backend": "gloo"},
            "ddp_backend: is only for several processes, started by torchrun or accelerate launch",
        ),
    ],
)
def test_values_and_pairs_that_cannot_be_are_named(world, training, message):
    with pytest.raises(RecipeError, match="training") as refused:
        arguments(world, **training)
    assert re.search(message, str(refused.value)), refused.value


def test_bf16_without_a_gpu_is_refused_with_what_to_do(world, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"no GPU; to train on its CPU add --set training\.use_cpu=true"):
        arguments(world, bf16=True, use_cpu=False)
    assert arguments(world, bf16=True, use_cpu=True).bf16


@pytest.mark.parametrize("setting", ["optim=lomo", "fsdp=full_shard", "adam_beta1=1.5"])
def test_a_refused_setting_leaves_no_run_behind(world, setting):
    command = ("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.max_steps=1")
    refused = run(*command, "--set", f"training.{setting}")
    assert refused.exit_code == 2, refused.output
    assert f"training.{setting.partition('=')[0]}: " in refused.output
    assert not (world / "runs").exists()
    assert run(*command).exit_code == 0
