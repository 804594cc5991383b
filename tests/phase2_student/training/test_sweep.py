"""A grid of runs in one process, continued after an interruption; runs side by side."""

import json
import re
import shutil

import pytest
import torch
from run_cases import run
from safetensors.torch import load_file

from phase2_student.training import sweep as sweep_module
from phase2_student.training.sweep import grid_runs

SHORT = ["--set", "training.num_train_epochs=1", "--set", "training.output_dir=runs/grid", "--no-progress"]


def weights(directory):
    return load_file(directory / "final" / "model.safetensors")


def test_a_sweep_survives_a_failing_run_continues_and_its_runs_are_those_of_train(world, monkeypatch):
    command = ["sweep", "--config", world / "recipe.yaml", *SHORT, "--grid", "temperature=1,3,2"]
    real = sweep_module.train

    def failing(plan):
        if plan.recipe.loss.temperature == 3:
            raise RuntimeError("out of luck")
        return real(plan)

    monkeypatch.setattr(sweep_module, "train", failing)
    first = run(*command)
    assert first.exit_code == 1, first.output
    assert "[2/3] temperature=3: failed: RuntimeError: out of luck" in first.stderr
    grid = world / "runs" / "grid"
    names = ["temperature=1", "temperature=3", "temperature=2"]
    assert sorted(path.name for path in grid.iterdir()) == sorted(names)
    assert "out of luck" in (grid / names[1] / "error.txt").read_text()
    assert [(grid / name / "final").is_dir() for name in names] == [True, False, True]
    facts = json.loads((grid / names[0] / "run.json").read_text())
    assert facts.keys() >= {"identity", "cache_digest", "versions", "seed", "git_commit"}
    assert (grid / names[0] / "recipe.yaml").exists()

    whole = weights(grid / names[2])
    shutil.rmtree(grid / names[2] / "final")  # interrupted after its last checkpoint but one
    shutil.rmtree(grid / names[2] / "checkpoint-7")
    monkeypatch.setattr(sweep_module, "train", real)
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert f"[1/3] {names[0]}: 7 steps finished before" in again.output
    assert not (grid / names[1] / "error.txt").exists()
    for name in names[1:]:
        assert f"{name}: 7 steps in" in again.output
    assert all(torch.equal(value, whole[key]) for key, value in weights(grid / names[2]).items())

    alone = ["--set", "training.output_dir=runs/alone", "--set", "loss.temperature=3"]
    trained = run("train", "--config", world / "recipe.yaml", *SHORT, *alone)
    assert trained.exit_code == 0, trained.output
    by_sweep = weights(grid / names[1])
    assert all(torch.equal(value, by_sweep[key]) for key, value in weights(world / "runs" / "alone").items())

    table = run("compare", grid)
    assert table.exit_code == 0
    lines = table.output.splitlines()
    assert lines[0].split()[:3] == ["run", "temperature", "steps"]
    assert [line.split()[0] for line in lines[2:5]] == sorted(names)
    picture = world / "curves.png"
    rows = json.loads(run("compare", grid, world / "runs" / "alone", "--json", "--plot", picture).stdout)
    assert len(rows) == 4
    assert rows[2]["settings"] == {"loss.temperature": 3.0}
    assert rows[2]["validation_ce"] == rows[3]["validation_ce"]
    assert rows[2]["seconds"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["temprature=1,2"], "a grid varies keys of loss, training, student"),
        (["loss.temprature=1,2"], "loss.temprature: no such key; did you mean 'temperature'?"),
        (["training.learning_rat=1,2"], "training.learning_rat: no such key in TrainingArguments"),
        (["training.learning_rate=1e-5,fast"], "training.learning_rate: .* got 'fast'"),
        (["temperature=1,9"], "loss.temperature: must lie within cache.temperatures"),
        (["alpha=0.5,"], "expected key=value,value"),
        (["alpha"], "expected key=value,value"),
        (["cache.top_k=8,16"], "a grid varies keys of loss, training, student"),
        (["alpha=0.5,0.5"], "two runs are named alpha=0.5"),
        (["alpha=0.5", "loss.alpha=0.7"], "loss.alpha: is given twice"),
        (["training.output_dir=a,b"], "each run gets a directory"),
    ],
)
def test_a_typo_is_refused_before_anything_runs(world, grid, message):
    options = [part for text in grid for part in ("--grid", text)]
    refused = run("sweep", "--config", world / "recipe.yaml", *SHORT, *options)
    assert refused.exit_code == 2, refused.output
    assert "Traceback" not in refused.output
    assert re.search(message, refused.output), refused.output
    assert not (world / "runs").exists() or not any((world / "runs" / "grid").glob("*/run.json"))


def test_the_last_key_varies_fastest_and_short_names_do_not_clash(world):
    runs = grid_runs(world / "recipe.yaml", [], ["training.learning_rate=1e-5,3e-5", "tail=bucket,none"])
    assert [run.name for run in runs] == [
        "learning_rate=1e-5,tail=bucket",
        "learning_rate=1e-5,tail=none",
        "learning_rate=3e-5,tail=bucket",
        "learning_rate=3e-5,tail=none",
    ]
    assert runs[3].recipe.training["learning_rate"] == 3e-5
    assert runs[3].recipe.output_dir == (world / "runs" / "a" / runs[3].name).resolve()


def test_comparing_what_is_no_run_is_refused(tmp_path):
    refused = run("compare", tmp_path)
    assert refused.exit_code == 2
    assert "give the directory of a run" in refused.output
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text('{"identity": {}}')
    begun = run("compare", tmp_path)
    assert begun.exit_code == 0
    assert "begun (not finished)" in begun.output
