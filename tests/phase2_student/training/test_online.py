"""Training with the teacher in memory: the same run as on a cache that stores everything."""

import json
import shutil

import pytest
import torch
from PIL import Image
from run_cases import run
from safetensors.torch import load_file

from firstsight.recipe import load_recipe
from phase2_student.data.online import OnlineTeacher
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
    assert "1 sample has no answer (open.jsonl:1)" in refused.output


def broken_rows(data, split):
    """Rows 1 to 5 of a split, each with a fault of its own that is an error of that sample alone."""
    file = data / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]

    def text(row, words):
        row["messages"][0]["content"][-1]["text"] = words

    text(rows[0], "red " * 600)
    text(rows[1], "look: <|image_pad|>")
    rows[2] |= {"images": ["nowhere.png"]}
    source = data / rows[3]["images"][0]
    (data / f"half-{split}.png").write_bytes(source.read_bytes()[:300])
    rows[3] |= {"images": [f"half-{split}.png"] * len(rows[3]["images"])}
    Image.new("RGB", (1, 5000)).save(data / f"thin-{split}.png")
    rows[4] |= {"images": [f"thin-{split}.png"] * len(rows[4]["images"])}
    for row in (rows[3], rows[4]):
        row.pop("frames", None)
        row.pop("times", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


WORDS = ("more than data.max_length = 512", "the control token <|image_pad|>", "nowhere.png not found")
WORDS += ("cannot be decoded", "refuses its images of 1 x 5000")


def test_broken_rows_of_both_splits_are_left_out_and_named(world):
    data = (world / "data").resolve()
    (world / "data").unlink()
    shutil.copytree(data, world / "data")
    for split in ("train", "validation"):
        broken_rows(world / "data", split)
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1"]
    stopped = run(*command, "--online")
    assert stopped.exit_code == 2
    assert "train.jsonl:" in stopped.output
    done = run(*command, "--online", "--set", "cache.on_error=skip")
    assert done.exit_code == 0, done.output
    assert "10 samples are left out (cache.on_error: skip):" in done.stderr
    facts = json.loads((world / "runs" / "a" / "run.json").read_text())
    assert (facts["train_samples"], facts["validation_samples"], facts["skipped_samples"]) == (21, 1, 10)
    assert (world / "runs" / "a" / "best").is_dir()  # by the loss of the validation row that is left
    plan = prepare(load_recipe(world / "recipe.yaml", ["cache.on_error=skip"]), online=True, progress=False)
    assert len(plan.skipped) == 10
    for split in ("train", "validation"):
        said = [reason for reason in plan.skipped if reason.startswith(f"{split}.jsonl:")]
        for number, words in enumerate(WORDS, start=1):
            assert any(reason.startswith(f"{split}.jsonl:{number}:") and words in reason for reason in said), words
    assert str(world) not in " ".join(plan.skipped)


def test_a_split_of_which_nothing_is_left_is_refused(world):
    data = (world / "data").resolve()
    (world / "data").unlink()
    shutil.copytree(data, world / "data")
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    for row in rows:
        row["messages"][0]["content"][-1]["text"] = "look: <|image_pad|>"
    (world / "data" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = run("train", "--config", world / "recipe.yaml", "--online", "--set", "cache.on_error=skip")
    assert refused.exit_code == 2, refused.output
    assert "validation.jsonl: none of the 6 samples can be used; the first: validation.jsonl:1:" in refused.stderr


def nan_for(monkeypatch, name):
    """The teacher's states of one sample are not finite."""
    complete = OnlineTeacher.complete

    def broken(self, batch):
        states = self.states

        def damaged(seen):
            found = states(seen)
            rows = [index for index, each in enumerate(batch.names) if each == name]
            found[torch.isin(batch.answer_rows, torch.tensor(rows, dtype=torch.int64))] = torch.nan
            return found

        self.states = damaged
        try:
            return complete(self, batch)
        finally:
            del self.states

    monkeypatch.setattr(OnlineTeacher, "complete", broken)


def test_a_sample_whose_states_are_not_finite_is_named_and_has_no_weight(world, monkeypatch):
    name = json.loads((world / "data" / "train.jsonl").read_text().splitlines()[4])["id"]
    nan_for(monkeypatch, name)
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--online", "--set"]
    stopped = run(*command, "training.num_train_epochs=1")
    assert stopped.exit_code == 2
    assert f"the teacher's hidden states are not finite on {name}; try teacher.dtype: bfloat16" in stopped.stderr
    skip = ["--set", "cache.on_error=skip", "--overwrite"]
    done = run(*command, "training.num_train_epochs=2", *skip)
    assert done.exit_code == 0, done.output
    assert done.stderr.count(f"sample {name!r} is left out (cache.on_error: skip)") == 1
    trained = weights(world / "runs" / "a" / "final")
    assert all(tensor.isfinite().all() for tensor in trained.values())
