"""Splits of which the loss weighs no position are refused, and parts of the loss without positions are left out, never 0."""

import json

import pytest
import torch
from run_cases import run

from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.loss.objective import LossTerms, Objective
from phase2_student.runs.history import read_history


@pytest.fixture(scope="module")
def unlabelled(made_world):
    """Rows without answers in train_u.jsonl and val_u.jsonl, and caches of them, answered by the teacher."""
    data = made_world / "data"
    for name, other in (("train", "train_u"), ("validation", "val_u")):
        rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("answer", None)
            if row.get("messages") and row["messages"][-1]["role"] == "assistant":
                row["messages"].pop()
        (data / f"{other}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for settings in (
        ["data.train=train_u.jsonl", "data.validation=val_u.jsonl", "cache.path=none.zarr"],
        ["data.validation=val_u.jsonl", "cache.path=train.zarr"],
    ):
        answered = [*settings, "cache.generate_missing=true", "cache.generate_max_tokens=8"]
        dump(prepare_dump(load_recipe(made_world / "recipe.yaml", answered), progress=False), progress=False)
    return made_world


NONE = ("data.train=train_u.jsonl", "data.validation=val_u.jsonl", "cache.path=none.zarr")
TRAIN = ("data.validation=val_u.jsonl", "cache.path=train.zarr")


def command(world, name, tmp_path, *settings):
    told = [part for text in settings for part in ("--set", text)]
    output = [] if name == "plan" else ["--set", f"training.output_dir={tmp_path / 'run'}"]
    return run(name, "--config", world / "recipe.yaml", "--no-progress", *told, *output)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([*NONE, "loss.alpha=0"], "none of the 26 training samples in"),
        ([*TRAIN, "loss.alpha=0"], "none of the 6 validation samples in"),
    ],
)
@pytest.mark.parametrize("name", ["train", "plan"])
def test_a_split_without_labels_is_refused_where_only_labels_count(unlabelled, tmp_path, name, settings, words):
    refused = command(unlabelled, name, tmp_path, *settings)
    assert refused.exit_code == 2
    (line,) = [line for line in refused.output.splitlines() if line.startswith("Error")]
    assert "loss.alpha: is 0, but" in line
    assert words in line
    assert "has a label" in line
    assert "fs-teacher answers" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [["training.eval_strategy=no"], ["data.validation=none"]])
def test_a_validation_that_is_not_made_needs_no_labels(unlabelled, tmp_path, settings):
    done = command(unlabelled, "train", tmp_path, *TRAIN, "loss.alpha=0", "training.max_steps=1", *settings)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("settings", [(*NONE, "loss.alpha=1"), (*NONE, "loss.alpha=0.7"), (*TRAIN, "loss.alpha=0.7")])
def test_a_part_without_positions_is_left_out(unlabelled, tmp_path, settings):
    done = command(unlabelled, "train", tmp_path, *settings, "training.max_steps=2")
    assert done.exit_code == 0, done.output
    assert "KD" in done.output
    assert "CE" not in done.output
    (validation,) = read_history(tmp_path / "run").validations
    assert validation["loss"] > 0
    assert "ce" not in validation
    compared = run("compare", tmp_path / "run", "--json")
    (found,) = json.loads(compared.output)["runs"]
    assert found["validation_ce"] is None


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("soft", "hard"), [(4, 0), (0, 4), (3, 2), (0, 0)])
def test_means_have_what_has_positions(alpha, training, soft, hard):
    terms = LossTerms(*torch.tensor([2.0 * soft, 3.0 * hard, 1.0 * soft, soft, hard, max(soft, hard), 2.0 * soft]))
    means = Objective(temperature=1.0, alpha=alpha).means(terms, training=training)
    expected = {"loss"}
    if soft:
        expected |= {"agreement"}
        expected |= {"kd"} if alpha or not training else set()
        expected |= set() if training else {"kl"}
    if hard:
        expected |= {"ce"}
    assert means.keys() == expected
    assert means.get("kd", 2.0) == 2.0
    assert means.get("ce", 3.0) == 3.0


@pytest.mark.parametrize(
    ("alpha", "soft", "hard", "weighs"),
    [
        (0.0, True, False, False),
        (0.0, True, True, True),
        (1.0, False, True, False),
        (1.0, True, False, True),
        (0.5, False, True, True),
        (0.5, True, False, True),
        (0.5, False, False, False),
    ],
)
def test_what_an_objective_weighs(alpha, soft, hard, weighs):
    found = Objective(temperature=1.0, alpha=alpha).weighs(torch.tensor([False, soft]), torch.tensor([hard, False]))
    assert found is weighs
