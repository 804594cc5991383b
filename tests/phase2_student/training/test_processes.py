"""Two processes at equal global batch are one: the same samples per step, the same losses; DDP and FSDP2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from run_cases import one_thread, run
from safetensors.torch import load_file

from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.runs.checkpoints import checkpoints, fault, lacking

ROOT = Path(__file__).parents[3]
OVERRIDES = ["training.num_train_epochs=3", "training.learning_rate=1e-4", "training.save_steps=10"]
STEPS = 21


@pytest.fixture(scope="module")
def place(made_world, tmp_path_factory) -> Path:
    """A directory with the run of one process in it, 2 samples x 2 micro-batches a step."""
    directory = tmp_path_factory.mktemp("processes")
    shutil.copy(made_world / "recipe.yaml", directory / "recipe.yaml")
    for name in ("models", "data", "cache.zarr"):
        (directory / name).symlink_to(made_world / name)
    options = [part for text in [*OVERRIDES, "training.output_dir=runs/one"] for part in ("--set", text)]
    with one_thread():
        one = run("train", "--config", directory / "recipe.yaml", "--no-progress", *options)
    assert one.exit_code == 0, one.output
    return directory


def torchrun(*command: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def log(directory: Path) -> list[dict[str, float]]:
    return json.loads((directory / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]


def assert_same_run(one: Path, two: Path) -> None:
    """Losses of every step and validation within 1e-5, and the same weights but for rounding."""
    steps = [[entry for entry in log(directory) if "kd" in entry] for directory in (one, two)]
    assert len(steps[0]) == STEPS
    validations = [[entry for entry in log(directory) if "eval_kd" in entry] for directory in (one, two)]
    for prefix, (a_log, b_log) in (("", steps), ("eval_", validations)):
        for a, b in zip(a_log, b_log, strict=True):
            assert b[f"{prefix}loss"] == pytest.approx(a[f"{prefix}loss"], rel=1e-5), (a["step"], prefix)
    for name in ("best", "final"):
        a, b = (load_file(directory / name / "model.safetensors") for directory in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=0, atol=1e-4)


def test_two_processes_under_torchrun(place):
    options = [
        *OVERRIDES,
        "training.output_dir=runs/two",
        "training.gradient_accumulation_steps=1",
        "training.ddp_backend=gloo",
    ]
    command = ["train", "--config", str(place / "recipe.yaml"), "--no-progress"]
    for text in options:
        command += ["--set", text]
    out = torchrun("--no-python", str(Path(sys.executable).with_name("fs-student")), *command)
    assert out.count("steps in") == 1  # one process speaks
    assert json.loads((place / "runs" / "two" / "run.json").read_text())["processes"] == 2
    assert_same_run(place / "runs" / "one", place / "runs" / "two")


def test_two_processes_that_share_the_weights(place):
    """FSDP2 with the shipped configuration; the head is tied to the embedding. Continued from its sharded checkpoint, too."""
    from transformers import AutoModelForImageTextToText

    options = [*OVERRIDES, "training.output_dir=runs/sharded", "training.gradient_accumulation_steps=1"]
    script = Path(__file__).with_name("sharded_run.py")
    config = ROOT / "examples" / "accelerate" / "fsdp2.yaml"
    out = torchrun(str(script), str(config), str(place / "recipe.yaml"), *options)
    facts = json.loads(out.split("FACTS ")[1].splitlines()[0])
    assert facts["sharded"]
    assert facts["tied"]
    assert facts["steps"] == STEPS
    assert 0.45 < facts["share"] < 0.55
    sharded = place / "runs" / "sharded"
    assert_same_run(place / "runs" / "one", sharded)
    before, after = (load_file(sharded / name / "model.safetensors") for name in ("undisturbed", "final"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    model, report = AutoModelForImageTextToText.from_pretrained(sharded / "final", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.architectures == ["Qwen2VLForConditionalGeneration"]


@pytest.fixture(scope="module")
def mixed(place, tmp_path_factory) -> Path:
    """The same, but for every other training sample, which has no image; shuffled, so that a step has some of both."""
    directory = tmp_path_factory.mktemp("mixed")
    shutil.copytree(place / "data", directory / "data")
    (directory / "models").symlink_to(place / "models")
    rows = [json.loads(line) for line in (place / "data" / "train.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["images"] = []
        row.pop("frames", None)
        for message in row["messages"]:
            message["content"] = [part for part in message["content"] if part["type"] == "text"]
    (directory / "data" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["training"] |= {"train_sampling_strategy": "random", "gradient_checkpointing": True}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    dump(prepare_dump(load_recipe(directory / "recipe.yaml")), progress=False)
    options = [part for text in [*OVERRIDES, "training.output_dir=runs/one"] for part in ("--set", text)]
    one = run("train", "--config", directory / "recipe.yaml", "--no-progress", *options)
    assert one.exit_code == 0, one.output
    return directory


ONE_SAMPLE = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2"]


def test_processes_of_which_some_see_no_image_do_not_wait_for_each_other(mixed):
    command = ["train", "--config", str(mixed / "recipe.yaml"), "--no-progress"]
    # without use_cpu, accelerate took them for two whole trainings, in one directory
    for text in [*OVERRIDES, *ONE_SAMPLE, "training.output_dir=runs/two", "training.use_cpu=false"]:
        command += ["--set", text]
    out = torchrun("--no-python", str(Path(sys.executable).with_name("fs-student")), *command)
    assert out.count("steps in") == 1
    assert json.loads((mixed / "runs" / "two" / "run.json").read_text())["processes"] == 2
    assert_same_run(mixed / "runs" / "one", mixed / "runs" / "two")


@pytest.mark.timeout(600)
def test_ctrl_c_stops_all_processes_after_one_step_with_a_checkpoint(place):
    """A terminal tells launcher and processes; the launcher passes it on: that is no second Ctrl-C."""
    output = place / "runs" / "stopped"
    command = ["train", "--config", str(place / "recipe.yaml"), "--no-progress"]
    for text in [
        "training.num_train_epochs=60",
        "training.gradient_accumulation_steps=1",
        f"training.output_dir={output}",
    ]:
        command += ["--set", text]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, "--no-python", str(Path(sys.executable).with_name("fs-student")), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log_file, deadline = output / "run.log", time.monotonic() + 240
        while not (log_file.exists() and "step 4:" in log_file.read_text(encoding="utf-8")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert error.count("Ctrl-C again stops at once") == 1
    stopped = set(
        re.findall(r"Stopped by Ctrl-C after step (\d+), with a checkpoint; the same command continues", error)
    )
    assert len(stopped) == 1, error
    newest = checkpoints(output)[0]
    assert newest.name == f"checkpoint-{stopped.pop()}"
    assert fault(newest) is None
    assert lacking(newest) is None
    assert not (output / "final").exists()
    assert not (output / "run.lock").exists()


def test_nor_do_processes_that_share_the_weights(mixed):
    script, config = Path(__file__).with_name("sharded_run.py"), ROOT / "examples" / "accelerate" / "fsdp2.yaml"
    options = [*OVERRIDES, *ONE_SAMPLE, "training.output_dir=runs/sharded"]
    torchrun(str(script), str(config), str(mixed / "recipe.yaml"), *options)
    assert_same_run(mixed / "runs" / "one", mixed / "runs" / "sharded")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_accelerates(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import FullyShardedDataParallelPlugin

    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    content = yaml.safe_load(path.read_text())
    assert content.keys() <= vars(config).keys()
    names = {key.removeprefix("fsdp_") for key in content.get("fsdp_config", {})}
    renamed = {
        "version": "fsdp_version",
        "offload_params": "cpu_offload",
        "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
    }
    assert {renamed.get(name, name) for name in names} <= set(vars(FullyShardedDataParallelPlugin)) | set(
        FullyShardedDataParallelPlugin.__dataclass_fields__
    )
