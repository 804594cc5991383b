"""Training with the teacher in memory: the same run as on a cache that stores everything."""

import json

import pytest
import torch
from run_cases import run
from safetensors.torch import load_file

from firstsight.recipe import load_recipe
from phase2_student.training.prepare import prepare


def weights(directory):
    return load_file(directory / "model.safetensors")


@pytest.fixture
def whole(world):
    """The world with a cache of every shared token."""
    from phase1_teacher.dump import dump, prepare_dump

    recipe = load_recipe(world / "recipe.yaml", ["cache.path=whole.zarr", "cache.top_k=1152"])
    dump(prepare_dump(recipe), progress=False)
    return world


def test_an_online_run_is_the_run_on_a_cache_of_everything(whole):
    command = ["train", "--config", whole / "recipe.yaml", "--no-progress"]
    cached = run(*command, "--set", "cache.path=whole.zarr", "--set", "cache.top_k=1152")
    assert cached.exit_code == 0, cached.output
    online = run(*command, "--online", "--set", "training.output_dir=runs/online", "--set", "cache.path=none.zarr")
    assert online.exit_code == 0, online.output
    assert "the teacher in memory" in online.output
    runs = whole / "runs"
    logs = [
        json.loads((runs / name / "checkpoint-14" / "trainer_state.json").read_text())["log_history"]
        for name in ("a", "online")
    ]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "kd", "ce", "eval_loss", "eval_kd", "eval_ce", "learning_rate"):
            assert (name in a) == (name in b)
            if name in a:  # the store quantises log-probabilities
                assert a[name] == pytest.approx(b[name], rel=1e-2), name
    base, one, two = (
        weights(d) for d in (whole / "models" / "student", runs / "a" / "final", runs / "online" / "final")
    )
    moved = torch.cat([(one[name].float() - base[name].float()).flatten() for name in one])
    apart = torch.cat([(one[name].float() - two[name].float()).flatten() for name in one])
    assert apart.norm() < 0.05 * moved.norm()


def test_an_online_run_says_so_and_is_not_continued_on_a_cache(world):
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1"]
    assert run(*command, "--online").exit_code == 0
    facts = json.loads((world / "runs" / "a" / "run.json").read_text())
    assert facts["identity"]["targets"] == "online"
    assert facts["identity"]["teacher.weights"]
    assert facts["cache_digest"] is None
    assert "is finished" in run(*command, "--online").output
    other = run(*command)
    assert other.exit_code == 2
    assert "targets: the run has 'online', the recipe 'cache'" in other.output


def test_order_and_lengths_are_those_of_the_cached_run(world):
    recipe = load_recipe(world / "recipe.yaml")
    cached, online = prepare(recipe, progress=False), prepare(recipe, online=True, progress=False)
    assert [key for key, _ in cached.train.samples] == [key for key, _ in online.train.samples]
    assert cached.train.lengths() == online.train.lengths()
    assert (cached.source.shared_mask() == online.source.shared_mask()).all()


def test_the_teacher_sees_its_own_resolution(world):
    recipe = load_recipe(world / "recipe.yaml", ["teacher.max_pixels=3136"])
    item = prepare(recipe, online=True, progress=False).train[0]
    teacher, student, rows = item.targets.encoded, item.encoded, item.targets.rows
    assert teacher.positions == student.positions == len(rows)
    assert len(teacher.input_ids) < len(student.input_ids)
    assert rows.tolist() == list(range(student.positions))
    filler = prepare(recipe, online=True, progress=False).train[~0]
    assert len(filler.targets.rows) == filler.targets.encoded.positions == 0


def test_a_sample_without_an_answer_is_refused(world):
    row = json.loads((world / "data" / "train.jsonl").read_text().splitlines()[0])
    row["messages"] = row["messages"][:-1]
    (world / "open.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--online", "--no-progress", "--set", f"data.train={world / 'open.jsonl'}"]
    refused = run("train", "--config", world / "recipe.yaml", *options)
    assert refused.exit_code == 2
    assert "1 samples have no answer (open.jsonl:1)" in refused.output
