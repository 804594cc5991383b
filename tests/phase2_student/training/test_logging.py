"""What a run tells tensorboard, wandb or trackio, and which of them it tells."""

import importlib.util

import pytest
import transformers.trainer
from run_cases import run
from transformers import TrainerCallback
from transformers.integrations import rewrite_logs

from firstsight.recipe import load_recipe
from phase2_student.training.arguments import training_arguments

TRAIN = {"loss", "kd", "ce", "agreement", "tokens_per_second", "data_wait", "learning_rate", "grad_norm"}
VALIDATION = {"loss", "kd", "ce", "agreement", "kl"}


def test_the_parts_of_the_loss_are_logged_apart_for_train_and_validation(world, monkeypatch):
    seen = []

    class Listener(TrainerCallback):
        """In the place of a reporting integration."""

        def on_log(self, _args, _state, _control, logs=None, **_):
            seen.append(rewrite_logs(dict(logs)))

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Listener])
    result = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1")
    assert result.exit_code == 0, result.output
    train = [entry for entry in seen if "train/loss" in entry]
    validation = [entry for entry in seen if "eval/loss" in entry]
    assert len(train) == 7
    assert len(validation) == 1
    assert {f"train/{name}" for name in TRAIN} <= train[0].keys()
    assert {f"eval/{name}" for name in VALIDATION} <= validation[0].keys()
    for entry in train:
        mixed = 0.7 * entry["train/kd"] + 0.3 * entry["train/ce"]
        assert entry["train/loss"] == pytest.approx(mixed, rel=2e-4)
        assert 0 <= entry["train/data_wait"] <= 1
        assert entry["train/tokens_per_second"] > 0
    assert validation[0]["eval/loss"] == pytest.approx(
        0.7 * validation[0]["eval/kd"] + 0.3 * validation[0]["eval/ce"], rel=1e-5
    )


@pytest.fixture
def installed(monkeypatch):
    """The trackers that seem to be installed."""
    names = set()
    stock = importlib.util.find_spec
    trackers = ("tensorboard", "wandb", "trackio")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: (name if name in names else None) if name in trackers else stock(name, *rest),
    )
    return names


def test_tensorboard_is_told_where_it_is_installed_and_others_by_name(world, installed):
    recipe = load_recipe(world / "recipe.yaml")
    open_ended = recipe.model_copy(update={"training": {k: v for k, v in recipe.training.items() if k != "report_to"}})
    assert training_arguments(open_ended).report_to == []
    installed.update({"tensorboard", "wandb", "trackio"})
    assert training_arguments(open_ended).report_to == ["tensorboard"]
    assert training_arguments(recipe).report_to == []
    told = recipe.model_copy(update={"training": {**recipe.training, "report_to": ["wandb", "trackio"]}})
    assert training_arguments(told).report_to == ["wandb", "trackio"]


@pytest.mark.usefixtures("installed")
def test_a_tracker_that_is_not_installed_is_named(world):
    result = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.report_to=wandb")
    assert result.exit_code == 2, (result.output, result.exception)
    assert "training.report_to: wandb is not installed; pip install wandb" in result.output
    assert not (world / "runs").exists()
