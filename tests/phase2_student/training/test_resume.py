"""A run that is killed, damaged or out of space ends with the very weights of the undisturbed one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_cases import assert_same_weights, run
from safetensors.torch import load_file

from phase2_student.runs.checkpoints import SEAL, checkpoints, fault, keep_newest, newest_whole, seal

LONG = os.environ.get("FIRSTSIGHT_FAULTS") == "long"
KILLS = 50 if LONG else 4
EPOCHS = 30 if LONG else 3
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes that are killed have: sums over other numbers of threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(world, output, *more):
    return run(
        "train", "--config", world / "recipe.yaml", "--no-progress", "--set", f"training.output_dir={output}", *more
    )


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_killed_at_random_steps_ends_with_the_same_weights(world):
    recipe = world / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("num_train_epochs: 2", f"num_train_epochs: {EPOCHS}"))
    assert train(world, "runs/undisturbed").exit_code == 0
    script = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe), str(KILLS), "7"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    print(outcome)
    assert outcome["ended"]
    assert outcome["kills"] >= KILLS
    # the step at which the signal arrived may have ended before it was delivered
    assert max(outcome["recomputed"]) <= 3 + 1
    assert_same_weights(world / "runs" / "undisturbed" / "final", world / "runs" / "a" / "final")


def test_damaged_and_unfinished_checkpoints_are_passed_over_out_loud(world):
    assert train(world, "runs/whole").exit_code == 0
    directory = world / "runs" / "whole"
    shutil.copytree(directory, world / "runs" / "hurt")
    hurt = world / "runs" / "hurt"
    for name in ("final", "best"):
        shutil.rmtree(hurt / name)
    newest, older = checkpoints(hurt)
    assert (newest.name, older.name) == ("checkpoint-14", "checkpoint-12")
    optimizer = newest / "optimizer.pt"
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    (hurt / "checkpoint-99").mkdir()

    again = train(world, "runs/hurt")
    assert again.exit_code == 0
    error = again.stderr
    assert "checkpoint-99 is passed over: it was not finished" in error
    assert "checkpoint-14 is passed over: optimizer.pt was changed" in error
    assert_same_weights(directory / "final", hurt / "final")


def test_each_damage_has_its_reason(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "sub" / "part").write_bytes(b"part")
    assert fault(checkpoint) == "it was not finished"
    seal(checkpoint)
    assert fault(checkpoint) is None
    (checkpoint / "sub" / "part").write_bytes(b"tarp")
    assert fault(checkpoint) == "sub/part was changed"
    (checkpoint / "sub" / "part").unlink()
    assert fault(checkpoint) == "sub/part is missing"
    (checkpoint / SEAL).write_text("{")
    assert fault(checkpoint) == f"its {SEAL} cannot be read"
    lines = []
    assert newest_whole(tmp_path, lines.append) is None
    assert lines == [f"{checkpoint} is passed over: its {SEAL} cannot be read"]


def test_the_oldest_checkpoints_go_first(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}")
    keep_newest(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


def small_disk(mount: Path, size: str) -> list[str]:
    """A command prefix that runs a shell line with a small tmpfs at `mount`, in a mount namespace of its own."""
    inner = f"mount -t tmpfs -o size={size} tmpfs {mount} && "
    for flags in (["-m"], ["-rm"]):
        prefix = ["unshare", *flags, "sh", "-c"]
        if shutil.which("unshare") and subprocess.run([*prefix, inner + "true"], capture_output=True).returncode == 0:
            return [*prefix, inner]
    return []


def test_a_full_disk_is_said_and_the_run_goes_on_after_space_is_freed(world):
    runs = world / "runs"
    runs.mkdir()
    student = world / "models" / "student"
    weights = load_file(student / "model.safetensors")
    size = sum(path.stat().st_size for path in student.iterdir() if path.suffix != ".safetensors")
    size += sum(4 * tensor.numel() for tensor in weights.values())  # float32 in training, bf16 on disk
    # model.safetensors of a checkpoint is as large as the student, its optimizer.pt twice: room for one and a half, and final
    *prefix, inner = small_disk(runs, str(int(7.2 * size)))
    if not prefix:
        if os.environ.get("FIRSTSIGHT_CI") == "1":
            pytest.fail("neither root nor user namespaces: no small tmpfs can be mounted")
        pytest.skip("neither root nor user namespaces: no small tmpfs can be mounted")
    command = (
        f"{sys.executable} -c 'from phase2_student.cli import main; main()' train --config {world}/recipe.yaml --no-progress "
        "--set training.num_train_epochs=1 --set training.save_total_limit=1"
    )
    script = (
        f"head -c {int(1.6 * size)} /dev/zero > {runs}/ballast; {command}; echo exit $?; ls {runs}/a; rm {runs}/ballast; "
        f"{command}; echo exit $?; cp -r {runs}/a/final {world}/survivor"
    )
    done = subprocess.run([*prefix, inner + script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exit 1") == 1, done.stdout + done.stderr
    assert done.stdout.count("exit 0") == 1, done.stdout + done.stderr
    assert "no space left" in done.stderr
    assert train(world, f"{world}/undisturbed", "--set", "training.num_train_epochs=1").exit_code == 0
    assert_same_weights(world / "survivor", world / "undisturbed" / "final")
