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
from phase2_student.runs.history import read_history

LONG = os.environ.get("FIRSTSIGHT_FAULTS") == "long"
KILLS = 50 if LONG else 4
INTERRUPTED = 40 if LONG else 2
EPOCHS = 30 if LONG else 3
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("_one_thread")


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


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_interrupted_in_every_way_ends_as_the_undisturbed_run(world, made_world):
    (world / "cache.zarr").unlink()
    shutil.copytree(made_world / "cache.zarr", world / "cache.zarr")
    script = Path(__file__).with_name("interrupt_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(world / "recipe.yaml"), str(INTERRUPTED), "11"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(*runs, sep="\n")
    assert len(runs) == INTERRUPTED
    for each in runs:
        limit = 0.0 if each["kind"] in ("nothing", "cache") else 1e-5
        assert max(each["final"], each["best"]) <= limit, each
        assert each["history"] <= 1e-5, each
    if LONG:
        told = [name for each in runs for name in each["signals"]]
        assert {name: told.count(name) >= 10 for name in ("SIGINT", "SIGTERM", "SIGKILL")} == dict.fromkeys(
            ("SIGINT", "SIGTERM", "SIGKILL"), True
        )


@pytest.mark.parametrize("last", [["training.max_steps=5"], ["training.num_train_epochs=1"]])
def test_a_run_that_is_killed_behind_its_last_step_takes_no_step_more(world, last):
    """In the middle of an epoch the stock loop takes one before it asks whether there is one left."""
    options = [part for text in [*last, "training.save_steps=1"] for part in ("--set", text)]
    assert train(world, "runs/a", *options).exit_code == 0
    directory = world / "runs" / "a"
    (directory / "final").rename(world / "final")
    before = read_history(directory)
    again = train(world, "runs/a", *options)
    assert again.exit_code == 0, again.output
    steps = before.last_step
    assert f"{steps} steps in" in again.output
    assert checkpoints(directory)[0].name == f"checkpoint-{steps}"
    assert_same_weights(world / "final", directory / "final")
    assert [entry["step"] for entry in read_history(directory).validations] == [steps]
    assert [row["steps"] for row in read_history(directory).epochs] == [steps]


def test_a_run_that_is_killed_in_the_validation_of_its_epoch_has_it_afterwards(world, monkeypatch):
    """The checkpoint of the epoch's last step lies behind its validation."""
    from phase2_student.training.trainer import DistillationTrainer

    stock, count = DistillationTrainer.evaluation_loop, []

    def dies(self, *args, **kwargs):
        count.append(self.state.global_step)
        if count == [7]:
            raise KeyboardInterrupt
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "evaluation_loop", dies)
    options = ["--set", "training.save_steps=7", "--set", "training.logging_steps=7"]
    assert train(world, "runs/a", *options).exit_code == 130
    assert checkpoints(world / "runs" / "a") == []
    assert train(world, "runs/a", *options).exit_code == 0
    assert count == [7, 7, 14]
    assert [entry["step"] for entry in read_history(world / "runs" / "a").validations] == [7, 14]


def test_files_have_the_modes_that_the_umask_leaves(world):
    before = os.umask(0o027)
    try:
        assert train(world, "runs/a", "--set", "training.max_steps=2").exit_code == 0
    finally:
        os.umask(before)
    files = [path for path in (world / "runs" / "a").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_damaged_and_unfinished_checkpoints_are_passed_over_out_loud(world, made_run):
    hurt = shutil.copytree(made_run, world / "runs" / "hurt")
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
    assert_same_weights(made_run / "final", hurt / "final")


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


def interrupted(world, made_run, name):
    """A copy of the finished run as it was when it was killed after step 12 of 14."""
    copy = shutil.copytree(made_run, world / "runs" / name)
    for part in ("final", "best", "checkpoint-14"):
        shutil.rmtree(copy / part)
    return copy


def rewrite_identity(directory, change):
    facts = json.loads((directory / "run.json").read_text())
    change(facts["identity"])
    (directory / "run.json").write_text(json.dumps(facts))


def assert_near_weights(one, two):
    a, b = (load_file(directory / "final" / "model.safetensors") for directory in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (["optimizer.pt"], "the state of the optimiser"),
        (["scheduler.pt"], "the state of the schedule"),
        (["rng_state.pth"], "the state of the random numbers"),
        (["trainer_state.json"], "the number of its step"),
        # what training.save_only_model leaves, which older versions took
        (
            ["optimizer.pt", "scheduler.pt", "rng_state.pth"],
            "the state of the optimiser, the state of the schedule, the",
        ),
    ],
)
def test_a_checkpoint_that_is_not_enough_is_passed_over(world, made_run, removed, words):
    hurt = interrupted(world, made_run, "hurt")
    kept = hurt / "checkpoint-12"
    shutil.copytree(kept, hurt / "checkpoint-13")
    for name in removed:
        (hurt / "checkpoint-13" / name).unlink()
    seal(hurt / "checkpoint-13")
    again = train(world, "runs/hurt")
    assert again.exit_code == 0, again.output
    assert f"checkpoint-13 is passed over: it lacks {words}" in again.stderr
    assert_same_weights(made_run / "final", hurt / "final")


def test_a_run_goes_on_though_others_add_samples_to_the_cache(world, made_run, made_world):
    """It is bound to the targets of its own samples; another target of one of them is another run."""
    from firstsight.demo.synth.writing import write_dataset
    from firstsight.recipe import load_recipe
    from phase1_teacher.dump import dump, prepare_dump

    (world / "cache.zarr").unlink()
    shutil.copytree(made_world / "cache.zarr", world / "cache.zarr")
    run_directory = interrupted(world, made_run, "grown")
    old = interrupted(world, made_run, "old")
    digest = json.loads((old / "run.json").read_text())["cache_digest"]
    write_dataset(world / "more", train=5, validation=2, seed=9, progress=False)
    dump(prepare_dump(load_recipe(world / "recipe.yaml", ["data.root=more"])), progress=False)
    again = train(world, "runs/grown")
    assert again.exit_code == 0, again.output
    assert json.loads((run_directory / "run.json").read_text())["cache_digest"] != digest
    assert_same_weights(made_run / "final", run_directory / "final")

    def as_before(identity):
        del identity["targets digest"]
        identity["cache digest"] = digest

    rewrite_identity(old, as_before)
    refused = train(world, "runs/old")
    assert refused.exit_code == 2
    assert "bound it to the whole cache, and samples were added to the cache since" in refused.output
    rewrite_identity(run_directory, lambda identity: identity.update({"targets digest": "0" * 64}))
    other = train(world, "runs/grown")
    assert other.exit_code == 2
    assert "targets digest: the run has '0000" in other.output


def test_a_run_of_an_older_version_goes_on(world, made_run):
    old = interrupted(world, made_run, "old")
    digest = json.loads((old / "run.json").read_text())["cache_digest"]

    def as_before(identity):
        del identity["targets digest"]
        identity.update({"cache digest": digest, "data.max_length": 512, "training.use_cpu": True})

    rewrite_identity(old, as_before)
    again = train(world, "runs/old")
    assert again.exit_code == 0, again.output
    assert_same_weights(made_run / "final", old / "final")


@pytest.mark.parametrize(
    "changed",
    [
        ["training.weight_decay=0.0", "training.adam_beta2=0.999", "training.lr_scheduler_type=linear"],
        ["training.train_sampling_strategy=group_by_length", "training.data_seed=42", "training.max_steps=-1"],
        ["training.logging_first_step=true", "training.dataloader_num_workers=1", "training.save_total_limit=5"],
        ["data.max_length=2000", "cache.memory=1000000"],
        ["loss.divergence=forward_kl", "loss.beta=null"],
    ],
)
def test_what_says_the_same_may_change_at_resume(world, made_run, changed):
    run_directory = interrupted(world, made_run, "changed")
    again = train(world, "runs/changed", *[part for text in changed for part in ("--set", text)])
    assert again.exit_code == 0, again.output
    assert_same_weights(made_run / "final", run_directory / "final")


@pytest.mark.parametrize(
    "changed",
    [
        ["training.gradient_checkpointing=true"],
        ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4"],
        ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"],
    ],
)
def test_what_changes_the_order_of_sums_may_change_at_resume(world, made_run, changed):
    run_directory = interrupted(world, made_run, "changed")
    again = train(world, "runs/changed", *[part for text in changed for part in ("--set", text)])
    assert again.exit_code == 0, again.output
    assert_near_weights(made_run, run_directory)


@pytest.mark.parametrize("changed", ["training.weight_decay=0.1", "training.data_seed=7", "training.warmup_steps=3"])
def test_what_changes_the_result_may_not(world, made_run, changed):
    interrupted(world, made_run, "changed")
    refused = train(world, "runs/changed", "--set", changed)
    assert refused.exit_code == 2
    assert f"  {changed.partition('=')[0]}: the run has" in refused.output
