"""A loss or a gradient that is not finite is never trained on: the run stops with one line, and what was saved before is whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.trainer
from safetensors.torch import load_file
from test_processes import torchrun
from test_training import run
from transformers import TrainerCallback

from phase2_student.data import cached
from phase2_student.runs.checkpoints import checkpoints, fault

pytestmark = pytest.mark.usefixtures("_one_thread")


def train(world, output, *more):
    options = ["--set", f"training.output_dir=runs/{output}", *more]
    return run("train", "--config", world / "recipe.yaml", "--no-progress", *options)


def weights(directory):
    return load_file(directory / "model.safetensors")


class Spoil(TrainerCallback):
    """Puts a value into a weight, or into its gradient, at step `at`."""

    def __init__(self, what, value, at=8):
        self.what, self.value, self.at = what, value, at

    def on_step_begin(self, _args, state, _control, model, **_):
        parameter = next(p for name, p in model.named_parameters() if name.endswith("layers.0.mlp.up_proj.weight"))
        if state.global_step + 1 == self.at:
            if self.what == "weight":
                parameter.data[0, 0] = self.value
            else:
                self.hook = parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), self.value))


@pytest.fixture
def spoiled(monkeypatch):
    """Trainings of this test are spoiled until `undo` is called."""

    def spoil(*arguments):
        stock = transformers.trainer.DEFAULT_CALLBACKS
        monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*stock, Spoil(*arguments)])
        return monkeypatch.undo

    return spoil


@pytest.mark.parametrize(
    ("what", "value", "more", "message"),
    [
        ("weight", math.nan, [], "step 8: the loss is nan on samples "),
        ("gradient", math.nan, [], "step 8: the norm of the gradient is nan on samples "),
        (
            "gradient",
            math.inf,
            ["--set", "training.max_grad_norm=0"],
            "step 8: the norm of the gradient is inf on samples ",
        ),
    ],
)
def test_the_step_is_not_taken_and_the_same_command_continues(world, spoiled, what, value, more, message):
    assert train(world, "whole", *more).exit_code == 0
    undo = spoiled(what, value)
    stopped = train(world, "a", *more)
    undo()
    assert stopped.exit_code == 2, (stopped.output, stopped.exception)
    lines = [line for line in stopped.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    directory = world / "runs" / "a"
    assert f"the last complete checkpoint is {directory / 'checkpoint-6'}, and the same command continues" in lines[0]
    ids = {json.loads(line)["id"] for line in (world / "data" / "train.jsonl").read_text().splitlines()}
    named = set(lines[0].split("on samples ")[1].split("; ")[0].split(", "))
    assert named
    assert named <= ids
    assert len(named) == 4

    assert [path.name for path in checkpoints(directory)] == ["checkpoint-6", "checkpoint-3"]
    assert all(fault(path) is None for path in checkpoints(directory))
    assert not (directory / "final").exists()
    for name, tensor in weights(directory / "best").items():
        assert tensor.isfinite().all(), name
    history = json.loads((directory / "training_history.json").read_text())
    assert len(history) == 1
    assert math.isfinite(history[0]["validation"]["loss"])
    table = run("compare", directory)
    assert table.exit_code == 0
    assert "a (not finished)" in table.output

    again = train(world, "a", *more)
    assert again.exit_code == 0, again.output
    expected, got = weights(world / "runs" / "whole" / "final"), weights(directory / "final")
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_targets_that_are_not_finite_stop_the_first_step_that_meets_them(world, monkeypatch):
    stock = cached.at_temperature

    def infinite(*arguments):
        log_p, log_r = stock(*arguments)
        log_p = np.array(log_p)
        log_p[:1, 0] = np.inf
        return log_p, log_r

    monkeypatch.setattr(cached, "at_temperature", infinite)
    stopped = train(world, "a")
    assert stopped.exit_code == 2, (stopped.output, stopped.exception)
    assert "step 1: the loss is " in stopped.stderr
    assert "there is no checkpoint yet" in stopped.stderr
    assert not list((world / "runs" / "a").glob("checkpoint-*"))
    assert not (world / "runs" / "a" / "best").exists()


SCRIPT = """
import os
import sys

import torch.distributed
import transformers.trainer

sys.path += {tests!r}
from test_finite import Spoil

sys.stderr = open({directory!r} + "/said-" + os.environ["RANK"], "w")


class OfOne(Spoil):
    def on_step_begin(self, *arguments, **named):
        if os.environ["RANK"] == "1":
            super().on_step_begin(*arguments, **named)


transformers.trainer.DEFAULT_CALLBACKS.append(OfOne("weight", float("nan"), 2))
from phase2_student.cli import main

try:
    main({command!r})
except SystemExit as stop:
    torch.distributed.barrier()  # both are here, or none gets further
    print("STOPPED", stop.code, file=sys.stderr, flush=True)
    torch.distributed.barrier()
    raise
"""


def test_all_processes_stop_together(world, tmp_path):
    command = ["train", "--config", str(world / "recipe.yaml"), "--no-progress"]
    command += ["--set", "training.gradient_accumulation_steps=1"]
    script, tests = tmp_path / "spoiled.py", [str(path) for path in Path(__file__).parents[:2]]
    script.write_text(SCRIPT.format(tests=tests, directory=str(tmp_path), command=command))
    with pytest.raises(AssertionError):
        torchrun(str(script))
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}").read_text()
        assert "Error: step 2: the loss is nan on samples" in said
        assert said.endswith("STOPPED 2\n")
    assert not (world / "runs" / "a" / "final").exists()
