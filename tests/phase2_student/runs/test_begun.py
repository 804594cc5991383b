"""A run that stopped before its first step binds nobody; a disk that gets full is told wherever a run writes weights."""

import json

import pytest
from run_cases import run
from safetensors import SafetensorError

from phase2_student.training import train as training


def test_a_run_that_failed_before_its_first_step_gives_way_to_another_recipe(world, monkeypatch):
    def fails(_plan):
        raise RuntimeError("no such kernel")

    command = ("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.max_steps=2")
    with monkeypatch.context() as patched:
        patched.setattr(training, "_student", fails)
        assert run(*command).exit_code != 0
    directory = world / "runs" / "a"
    assert (directory / "run.json").is_file()
    corrected = run(*command, "--set", "training.weight_decay=0.1")
    assert corrected.exit_code == 0, corrected.output
    assert json.loads((directory / "run.json").read_text())["identity"]["training.weight_decay"] == 0.1
    refused = run(*command)
    assert refused.exit_code == 2
    assert "training.weight_decay: the run has 0.1" in refused.output


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342"),
    ],
)
def test_a_full_disk_while_a_student_is_written_is_told(world, monkeypatch, error):
    def full(_model, _processor, directory, _dtype):
        (directory / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(training, "save_student", full)
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "no space left for the student" in done.output
    assert "run the same command again" in done.output
    assert not list((world / "runs" / "a").glob(".best*"))


def test_another_error_of_writing_is_not_called_a_full_disk(world, monkeypatch):
    def broken(*_):
        raise SafetensorError("invalid header")

    monkeypatch.setattr(training, "save_student", broken)
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.max_steps=1")
    assert isinstance(done.exception, SafetensorError)
