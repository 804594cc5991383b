"""Keys of `training` that another key leaves without effect are named by plan and train."""

import pytest
from run_cases import run

from firstsight.recipe import load_recipe
from phase2_student.training.arguments import idle_note, training_defaults
from phase2_student.training.known_arguments import idle


@pytest.mark.parametrize(
    ("training", "idle_ones"),
    [
        ({"num_train_epochs": 10, "max_steps": 1}, ["num_train_epochs (training.max_steps decides)"]),
        ({"num_train_epochs": 10, "max_steps": -1}, []),
        ({"max_steps": 1}, []),
        ({"data_seed": 3, "train_sampling_strategy": "sequential"}, ["data_seed (the order is the data's)"]),
        ({"data_seed": 3}, []),
        ({"fsdp_config": {"version": 2}}, ["fsdp_config (training.fsdp is not set)"]),
        ({"fsdp_config": {"version": 2}, "fsdp": "full_shard"}, []),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            ["gradient_checkpointing_kwargs (training.gradient_checkpointing is not set)"],
        ),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False}, "activation_checkpointing": True}, []),
        ({"run_name": "x", "report_to": "none"}, ["run_name (no tracker in training.report_to reads it)"]),
        ({"run_name": "x", "report_to": ["tensorboard", "wandb"]}, []),
        ({"run_name": "x", "report_to": "all"}, []),
        ({"trackio_space_id": "a/b"}, ["trackio_space_id (training.report_to does not name trackio)"]),
        ({"project": "p", "report_to": "wandb"}, ["project (training.report_to does not name trackio)"]),
        ({"project": "p", "report_to": "trackio"}, []),
        ({"run_name": None, "fsdp_config": None}, []),
    ],
)
def test_keys_that_another_leaves_without_effect_are_named(training, idle_ones):
    assert idle(training, training_defaults()) == [f"training.{each}" for each in idle_ones]


def test_training_and_plan_say_which_keys_have_no_effect(world):
    settings = ["--set", "training.max_steps=1", "--set", "training.num_train_epochs=3", "--set", "training.run_name=x"]
    expected = (
        "without effect: training.num_train_epochs (training.max_steps decides), "
        "training.run_name (no tracker in training.report_to reads it)"
    )
    assert idle_note(load_recipe(world / "recipe.yaml", settings[1::2])) == expected
    for command in ("plan", "train"):
        done = run(command, "--config", world / "recipe.yaml", "--no-progress", *settings)
        assert done.exit_code == 0, done.output
        assert done.output.count(expected) == 1
