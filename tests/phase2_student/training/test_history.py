"""The history and the best student of a run that diverges, and arguments that a run does not take."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.loss.objective import LossTerms, Objective
from phase2_student.report.run_table import run_rows
from phase2_student.runs.best import best_loss
from phase2_student.runs.records import read_runs
from phase2_student.training.arguments import training_arguments
from phase2_student.training.callbacks.history import HistoryCallback
from phase2_student.training.train import _finished


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, math.nan], 2.0),
        ([math.nan, 3.0, 4.0], 3.0),
        ([math.inf, 3.0], 3.0),
        ([math.nan, math.nan], math.nan),
        ([2.0, 3.0], 2.0),
    ],
)
def test_a_run_that_diverges_keeps_its_history_and_its_best_student(tmp_path, losses, best):
    log, objective = [], Objective(temperature=2.0, alpha=0.7)

    def save(directory):
        (directory / "loss").write_text(str(log[-1]["eval_loss"]))

    callback = HistoryCallback(tmp_path, save, objective.text(8))
    for epoch, loss in enumerate(losses, start=1):
        means = objective.means(LossTerms(*torch.tensor([loss, loss, 1.0, 1.0, 1.0, 1.0])), training=False)
        log.append({"epoch": epoch, "step": epoch, "learning_rate": 1e-3, **means})
        log.append({"epoch": epoch, "step": epoch, **{f"eval_{k}": v for k, v in means.items()}})
        callback.on_evaluate(None, SimpleNamespace(log_history=log, is_world_process_zero=True), None)
    assert float((tmp_path / "best" / "loss").read_text()) == pytest.approx(best, nan_ok=True)
    rows = json.loads((tmp_path / "training_history.json").read_text())
    assert [row["validation"]["kd"] for row in rows] == pytest.approx(losses, nan_ok=True)
    assert all("T = 2, alpha = 0.7, forward_kl, a lower bound: on 8 stored entries" in row["objective"] for row in rows)
    assert [row["train"]["ce"] for row in rows] == pytest.approx(losses, nan_ok=True)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, math.nan], 2.0),
        ([math.nan, 3.0, 4.0], 3.0),
        ([-math.inf, 3.0, math.inf], 3.0),
        ([math.nan], None),
        ([], None),
    ],
)
def test_a_run_has_one_best_loss_wherever_it_is_shown(tmp_path, losses, best):
    assert best_loss(losses) == best
    rows = [
        {"epoch": n, "step": n, "train": {}, "validation": {"loss": loss}} for n, loss in enumerate(losses, start=1)
    ]
    rows = rows or [{"epoch": 1, "step": 1, "train": {}, "validation": None}]
    (tmp_path / "training_history.json").write_text(json.dumps(rows))
    (tmp_path / "run.json").write_text('{"identity": {}}')
    (run,) = read_runs([tmp_path])
    assert run.best_validation_loss == best
    (row,) = run_rows([run])
    assert row.best_validation_loss == best
    result = _finished(tmp_path)
    assert result.best_validation_loss == best
    assert result.best_text == ("no validation loss" if best is None else f"best validation loss {best:.4f}")


def test_the_best_student_is_not_put_in_place_of_the_last(world):
    recipe = load_recipe(world / "recipe.yaml", ["training.load_best_model_at_end=true"])
    with pytest.raises(
        RecipeError,
        match=r"training\.load_best_model_at_end: is not a setting .*best/ holds the best student.*, got True",
    ):
        training_arguments(recipe)


def test_without_a_launcher_one_gpu_is_used_and_that_is_said(world, monkeypatch, capsys):
    stock = TrainingArguments.__post_init__

    def on_four_gpus(self):
        stock(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", on_four_gpus)
    assert training_arguments(load_recipe(world / "recipe.yaml")).n_gpu == 1
    assert "One of 4 GPUs is used; accelerate launch or torchrun" in capsys.readouterr().err
