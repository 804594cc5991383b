"""The history and the best student of a run that diverges, and arguments that a run does not take."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from run_cases import run
from transformers import TrainingArguments

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.loss.objective import LossTerms, Objective
from phase2_student.report import figures
from phase2_student.report.run_row import run_rows
from phase2_student.runs.best import best_loss
from phase2_student.runs.history import read_history
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
        means = objective.means(LossTerms(*torch.tensor([loss, loss, 1.0, 1.0, 1.0, 1.0, 1.0])), training=False)
        log.append({"epoch": epoch, "step": epoch, "learning_rate": 1e-3, **means})
        log.append({"epoch": epoch, "step": epoch, **{f"eval_{k}": v for k, v in means.items()}})
        callback.on_evaluate(None, SimpleNamespace(log_history=log, is_world_process_zero=True), None)
    assert float((tmp_path / "best" / "loss").read_text()) == pytest.approx(best, nan_ok=True)
    rows = json.loads((tmp_path / "training_history.json").read_text())
    assert [row["validation"]["kd"] for row in rows] == pytest.approx(losses, nan_ok=True)
    assert all("T = 2, alpha = 0.7, forward_kl, a lower bound: on 8 stored entries" in row["objective"] for row in rows)
    assert [row["train"]["ce"] for row in rows] == pytest.approx(losses, nan_ok=True)


def train(world, name, *settings):
    options = [part for text in [*settings, f"training.output_dir=runs/{name}"] for part in ("--set", text)]
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    return read_history(world / "runs" / name), done.output


def assert_same_epochs(one, two):
    """What was measured, not how long it took; rounding apart."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert [a[name] for name in ("epoch", "step", "steps")] == [b[name] for name in ("epoch", "step", "steps")]
        assert a["validation"] == pytest.approx(b["validation"], rel=1e-6)
        for name in ("loss", "kd", "ce", "agreement", "grad_norm"):
            assert a["train"][name] == pytest.approx(b["train"][name], rel=1e-5), name


def test_an_epoch_has_the_means_over_exactly_its_steps_however_often_is_logged(world):
    every, _ = train(world, "every")
    seldom, _ = train(world, "seldom", "training.logging_steps=5")
    never, _ = train(world, "never", "training.logging_steps=1000")
    assert [entry["step"] for entry in every.logged] == list(range(1, 15))
    assert [entry["step"] for entry in seldom.logged] == [5, 10]
    assert never.logged == []
    for number, row in enumerate(every.epochs):
        mine = every.logged[7 * number : 7 * number + 7]
        assert row["logged"] == mine
        assert (row["epoch"], row["step"], row["steps"]) == (number + 1, 7 * number + 7, 7)
        for name in ("loss", "kd", "ce", "agreement", "grad_norm"):
            mean = sum(entry[name] for entry in mine) / 7
            assert row["train"][name] == pytest.approx(mean, rel=1e-4), name
        assert row["train"]["loss"] == pytest.approx(0.7 * row["train"]["kd"] + 0.3 * row["train"]["ce"], rel=1e-5)
        assert row["seconds"] > 0
        assert 0 <= row["train"]["data_wait"] < 1
    assert_same_epochs(every.epochs, seldom.epochs)
    assert_same_epochs(every.epochs, never.epochs)
    window = [entry["kd"] for entry in every.logged[5:10]]
    assert seldom.logged[1]["kd"] == pytest.approx(sum(window) / 5, rel=1e-5)


def test_the_best_in_the_middle_of_an_epoch_is_the_best_everywhere(world):
    """Validations every two steps of a run that gets worse after a few."""
    settings = [
        "training.eval_strategy=steps",
        "training.eval_steps=2",
        "training.learning_rate=0.5",
        "training.num_train_epochs=1",
    ]
    history, said = train(world, "a", *settings)
    assert [entry["step"] for entry in history.validations] == [2, 4, 6, 7]
    losses = {entry["step"]: entry["loss"] for entry in history.validations}
    best = min(losses, key=lambda step: losses[step])
    assert losses[best] < min(row["validation"]["loss"] for row in history.epochs)  # else this shows nothing
    shown = f"{losses[best]:.4f}"
    assert f"best validation loss {shown}" in said
    again = run("train", "--config", world / "recipe.yaml", *[part for text in settings for part in ("--set", text)])
    assert f"best validation loss {shown}" in again.output
    directory = world / "runs" / "a"
    (row,) = json.loads(run("compare", "--json", directory).output)["runs"]
    assert row["best_validation_loss"] == losses[best]
    assert f" {shown} " in run("compare", directory).output
    assert run("report", directory, "--output", world / "report.html").exit_code == 0
    assert f">{shown}<" in (world / "report.html").read_text()
    state = json.loads((directory / "checkpoint-7" / "trainer_state.json").read_text())
    logged = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert best_loss(logged) == losses[best]


def test_one_epoch_has_curves(world):
    train(world, "a", "training.num_train_epochs=1", "training.logging_steps=2")
    (found,) = read_runs([world / "runs" / "a"])
    (train_line, validation_line) = figures.history_lines([found], "kd", {"a": 0})
    assert train_line.dashed
    assert list(train_line.x) == [2, 4, 6]
    assert list(validation_line.x) == [7]


def test_a_long_curve_is_thinned_to_means():
    thinned = figures._thinned([(step, float(step % 2)) for step in range(1, 3001)])
    assert len(thinned) == 300
    assert thinned[-1] == (3000, 0.5)
    assert figures._thinned([(1, 2.0), (2, 3.0)]) == [(1, 2.0), (2, 3.0)]


def test_without_validations_there_is_a_last_student_and_no_best(world):
    options = ["training.eval_strategy=no", "training.num_train_epochs=1", "training.eval_on_start=true"]
    history, said = train(world, "a", *options)
    directory = world / "runs" / "a"
    assert history.validations == []
    assert history.epochs[0]["validation"] is None
    assert history.epochs[0]["steps"] == 7
    assert 'training.eval_strategy is "no": there is no validation loss and no best/' in said
    assert "without effect: training.eval_on_start" in said
    assert "7 steps in " in said
    assert f"no validation loss: {directory / 'final'}\n" in said
    assert not (directory / "best").exists()
    recipe = load_recipe(world / "recipe.yaml")
    (student,) = parse_candidates(recipe, ["student"])
    assert student.directory == directory / "final"
    dry = run("export", "--int8", "--nf4", "--config", world / "recipe.yaml", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert [line.partition(":")[0] for line in dry.output.splitlines()] == [
        str(directory / f"final-{kind}") for kind in ("int8", "nf4")
    ]
    published = run("publish", "--config", world / "recipe.yaml", "--repo", "me/it", "--dry-run", "--no-evaluation")
    assert published.exit_code == 0, published.output
    assert "model.safetensors" in published.output
    assert run("compare", directory).exit_code == 0
    assert run("report", directory).exit_code == 0


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
        match=r"training\.load_best_model_at_end: is not supported here .*best/ holds the best student.*, got True",
    ):
        training_arguments(recipe)


def test_without_a_launcher_one_gpu_is_used_and_that_is_said(world, monkeypatch, capsys):
    stock = TrainingArguments.__post_init__

    def on_four_gpus(self):
        stock(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", on_four_gpus)
    assert training_arguments(load_recipe(world / "recipe.yaml")).n_gpu == 1
    assert "One of 4 GPUs is used; to train on all of them use torchrun or accelerate launch" in capsys.readouterr().err
