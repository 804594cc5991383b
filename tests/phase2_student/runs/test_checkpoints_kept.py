"""Which checkpoints of a run are kept: never fewer whole ones than it can continue from."""

import os
import shutil
import signal

import pytest
from run_cases import run

from phase2_student.runs.checkpoints import checkpoints, keep_newest, seal


def names(directory):
    return sorted(path.name for path in checkpoints(directory))


@pytest.mark.parametrize(
    ("sealed", "unfinished", "step", "count", "kept"),
    [
        ([3, 4], [6], 4, 1, [4]),
        ([3, 4], [6], 4, 2, [3, 4]),
        ([3, 6], [], 6, 1, [6]),
        ([1, 2, 4, 9], [3], 4, 2, [2, 4]),  # 9 was damaged: the run resumed from 2
        ([9, 10, 100], [50], None, 2, [10, 100]),
        ([7], [], 7, 5, [7]),
    ],
)
def test_unfinished_checkpoints_are_not_counted_and_go(tmp_path, sealed, unfinished, step, count, kept):
    for number in (*sealed, *unfinished):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in sealed:
        seal(tmp_path / f"checkpoint-{number}")
    keep_newest(tmp_path, count, step=step)
    assert names(tmp_path) == sorted(f"checkpoint-{number}" for number in kept)


def stop_at(monkeypatch, step):
    """Let this process get SIGTERM in a step of a training."""
    from phase2_student.training.callbacks.signals import StopOnSignal

    stock = StopOnSignal.on_step_end

    def told(self, args, state, control, **more):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", told)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_checkpoint_that_was_saved_behind_an_unfinished_one_is_kept(world, made_run, monkeypatch, limit):
    directory = world / "runs" / "a"
    directory.mkdir(parents=True)
    for name in ("run.json", "recipe.yaml", "preprocessing.json", "checkpoint-12"):
        (shutil.copytree if (made_run / name).is_dir() else shutil.copy)(made_run / name, directory / name)
    (directory / "checkpoint-14").mkdir()
    (directory / "checkpoint-14" / "model.safetensors").write_bytes(b"half")
    command = (
        "train",
        "--config",
        world / "recipe.yaml",
        "--no-progress",
        "--set",
        f"training.save_total_limit={limit}",
    )
    with monkeypatch.context() as patched:
        stop_at(patched, 13)
        stopped = run(*command)
    assert stopped.exit_code == 143, stopped.output
    assert "after step 13, which was saved" in stopped.output
    assert names(directory) == ["checkpoint-12", "checkpoint-13"][-limit:]
    assert run(*command).exit_code == 0
    assert "continues after step 13" in (directory / "run.log").read_text()
    assert len(names(directory)) == limit


def test_the_checkpoint_that_a_run_resumed_from_is_not_written_again(world, made_run):
    """Killed behind its last step, before final/: at the end of the epoch the stock trainer saves the same step once more."""
    directory = shutil.copytree(made_run, world / "runs" / "a")
    shutil.rmtree(directory / "final")
    written = (directory / "checkpoint-14" / "model.safetensors").stat().st_ino
    done = run("train", "--config", world / "recipe.yaml", "--no-progress")
    assert done.exit_code == 0, done.output
    assert (directory / "checkpoint-14" / "model.safetensors").stat().st_ino == written


def test_a_plan_that_is_trained_twice_keeps_its_limit(world, monkeypatch):
    from firstsight.recipe import load_recipe
    from phase2_student.training.prepare import prepare
    from phase2_student.training.train import train

    settings = ["training.save_steps=1", "training.save_total_limit=1", "training.max_steps=6"]
    plan = prepare(load_recipe(world / "recipe.yaml", settings), progress=False)
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert not train(plan).finished
    assert train(plan).finished
    assert names(world / "runs" / "a") == ["checkpoint-6"]
    assert plan.arguments.save_total_limit == 1
