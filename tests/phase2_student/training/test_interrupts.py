"""Ctrl-C saves and says how to continue, a second one stops at once; run.log and the lines of a training run without a terminal."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from run_cases import assert_same_weights, one_thread, run

from phase2_student.training.callbacks import run_log

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SLOW = ["--no-progress", "--set", "training.num_train_epochs=40", "--set", "training.logging_steps=1"]
SIX_EPOCHS = ["--no-progress", "--set", "training.num_train_epochs=6"]


@pytest.fixture(scope="module")
def undisturbed(made_world):
    """The student of six epochs without an interruption."""
    options = [*SIX_EPOCHS, "--set", "training.output_dir=runs/undisturbed"]
    with one_thread():
        done = run("train", "--config", made_world / "recipe.yaml", *options)
    assert done.exit_code == 0, done.output
    return made_world / "runs" / "undisturbed" / "final"


def start(world, *more):
    """A training run in a process group of its own, as a terminal would start it."""
    code = "from phase2_student.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--config", str(world / "recipe.yaml"), *more]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(path, text, process):
    deadline = time.monotonic() + 240
    while not (path.exists() and text in path.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_ends_with_the_same_weights(world, undisturbed, number, workers):
    """Ctrl-C goes to the workers of the loader, too."""
    options = [*SIX_EPOCHS, "--set", f"training.dataloader_num_workers={workers}"]
    process = start(world, *options)
    log = world / "runs" / "a" / "run.log"
    wait_for(log, "step 4:", process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 128 + number, (out, error)
    assert "Traceback" not in error
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    stopped = re.search(
        rf"Stopped by {by} after step (\d+), which was saved; the same command continues from there\.", error
    )
    assert stopped, error
    assert (world / "runs" / "a" / f"checkpoint-{stopped[1]}").is_dir()
    assert not (world / "runs" / "a" / "final").exists()

    again = run("train", "--config", world / "recipe.yaml", *options)
    assert again.exit_code == 0, again.output
    assert_same_weights(world / "runs" / "a" / "final", undisturbed)
    text = log.read_text(encoding="utf-8")
    assert f"stops after step {stopped[1]}" in text
    assert f"continues after step {stopped[1]}, 42 steps in all" in text
    assert "ends after step 42" in text


@pytest.mark.timeout(300)
def test_a_second_ctrl_c_stops_at_once(world):
    process = start(world, *SLOW)
    wait_for(world / "runs" / "a" / "run.log", "step 2:", process)
    os.kill(process.pid, signal.SIGSTOP)  # both arrive before a step can end
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "press Ctrl-C again to stop at once" in error
    assert "Traceback" not in error


def test_ctrl_c_before_the_training_is_no_traceback(world, monkeypatch):
    from phase2_student.training import prepare

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "load_samples", interrupted)
    done = run("train", "--config", world / "recipe.yaml")
    assert done.exit_code == 130
    assert "Interrupted." in done.stderr
    assert "Traceback" not in done.output


def test_every_run_has_a_log_and_signs_of_life_without_a_terminal(world, monkeypatch):
    monkeypatch.setattr(run_log, "HEARTBEAT", 0.0)
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1")
    assert done.exit_code == 0, done.output
    lines = (world / "runs" / "a" / "run.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  \S", line) for line in lines)
    text = "\n".join(line.partition("  ")[2] for line in lines)
    assert "forward_kl, a lower bound: on 64 stored entries" in text.splitlines()[0]
    for expected in (
        "begins, 7 steps in all",
        "step 3: checkpoint saved",
        "step 7: validation loss ",
        "ends after step 7",
    ):
        assert expected in text
    assert len(re.findall(r"^step \d: loss \S+, kd \S+, ce ", text, re.MULTILINE)) == 7
    beats = re.findall(
        r"^step (\d) of 7 \(\d+%\), \S+ steps/s, ETA \d:\d\d:\d\d(?:, loss \S+, waiting for data \d+%)?$",
        done.stderr,
        re.MULTILINE,
    )
    assert beats == [str(n) for n in range(1, 8)]


def test_a_failure_is_in_the_log(world):
    options = [
        "--set",
        "training.learning_rate=1e30",
        "--set",
        "training.max_grad_norm=0",
        "--set",
        "training.warmup_steps=0",
    ]
    done = run("train", "--config", world / "recipe.yaml", "--no-progress", *options)
    assert done.exit_code == 2, done.output
    last = (world / "runs" / "a" / "run.log").read_text(encoding="utf-8").splitlines()[-1]
    assert "failed: TrainingError: step " in last
