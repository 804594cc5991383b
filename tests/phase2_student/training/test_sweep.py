"""A grid of runs in one process, continued after an interruption; runs side by side."""

import json
import re
import shutil

import pytest
import torch
import yaml
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
    rows = json.loads(run("compare", grid, world / "runs" / "alone", "--json", "--plot", picture).stdout)["runs"]
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
        (["temperature=1,1.0"], "temperature=1 and temperature=1.0 are one run, with a value in two spellings"),
        (["training.learning_rate=1e-5,0.00001"], "learning_rate=1e-5 and learning_rate=0.00001 are one run"),
        (["training.max_steps=2,3,+2"], r"max_steps=2 and max_steps=\+2 are one run"),
        (["alpha=0.5,0.50", "temperature=1,2"], "alpha=0.5,temperature=1 and alpha=0.50,temperature=1 are one run"),
        (["cache.path=cache.zarr,./cache.zarr"], "path=cache.zarr and path=.-cache.zarr are one run"),
        (["divergence=tv,forward_kl", "beta=0.1,0.5"], r"loss.beta: forward_kl has no beta; "),
        (
            ["divergence=forward_kl,js", "beta=0.1,1.5"],
            r"loss.beta: must lie .* \(in the run divergence=js,beta=1.5 of the grid\)",
        ),
        (["beta=0.1,0.5"], "loss.beta: forward_kl has no beta"),
        (["alpha=0", "temperature=1,2"], "has no effect in any run of the grid, since loss.alpha is 0"),
        (["alpha=0,0.7", "temperature=1,9"], "loss.temperature: must lie within cache.temperatures"),
        (["alpha=0,0", "temperature=1,2"], "two runs are named alpha=0,temperature=1"),
        (["cache.path=cache.zarr,none.zarr"], r"none.zarr.* \(in the run path=none.zarr of the grid\)"),
        (["tail=bucket,shape"], r"loss.tail: shape: .* \(in the run tail=shape of the grid\)"),
        (["divergence=js,kl"], "loss.divergence: input should be 'forward_kl'"),
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


def test_a_sweep_over_divergences_and_what_compare_shows_of_it(world):
    """Runs of every divergence train, are told apart, name what they minimise, and a spelt-out default is the default."""
    at_two = ["--set", "loss.temperature=2"]  # at 1, near-uniform distributions give some of them the same three steps
    command = ["sweep", "--config", world / "recipe.yaml", *SHORT, *at_two, "--set", "training.max_steps=3"]
    swept = run(*command, "--grid", "divergence=forward_kl,reverse_kl,skewed_kl,js,tv")
    assert swept.exit_code == 0, swept.output
    betas = run(*command, "--grid", "divergence=skewed_kl,js", "--grid", "beta=0.3")
    assert betas.exit_code == 0, betas.output
    grid = world / "runs" / "grid"
    rows = {row["name"]: row for row in json.loads(run("compare", grid, "--json").stdout)["runs"]}
    shown = {name: tuple(row["settings"].values()) for name, row in rows.items()}
    assert all(list(row["settings"]) == ["loss.beta", "loss.divergence"] for row in rows.values())
    assert shown == {
        "divergence=forward_kl": (None, "forward_kl"),
        "divergence=reverse_kl": (None, "reverse_kl"),
        "divergence=skewed_kl": (0.1, "skewed_kl"),
        "divergence=js": (0.5, "js"),
        "divergence=tv": (None, "tv"),
        "divergence=skewed_kl,beta=0.3": (0.3, "skewed_kl"),
        "divergence=js,beta=0.3": (0.3, "js"),
    }
    assert len({row["validation_kd"] for row in rows.values()}) == len(rows)
    assert len({row["validation_ce"] for row in rows.values()}) == len(rows)
    directory = grid / "divergence=js,beta=0.3"
    for text in (
        json.loads((directory / "run.json").read_text())["objective"],
        json.loads((directory / "training_history.json").read_text())[-1]["objective"],
    ):
        assert re.search(r"js, beta = 0.3, a lower bound: on \d+ stored entries and the rest as one outcome", text)
    page = world / "report.html"
    assert run("report", grid, "--output", page).exit_code == 0
    assert {"skewed_kl", "reverse_kl", "divergence"} <= set(re.findall(r">(\w+)<", page.read_text()))

    train = ["train", "--config", world / "recipe.yaml", *SHORT, *at_two, "--set", "training.max_steps=3"]
    spelt = ["--set", "loss.divergence=js", "--set", "loss.beta=0.5"]
    same = run(*train, *spelt, "--set", "training.output_dir=runs/grid/divergence=js")
    assert same.exit_code == 0, same.output
    assert "is finished" in same.output
    assert re.search(r"T = \d.*, js, beta = 0.5, a lower bound", same.output)
    other = run(*train, *spelt[:2], "--set", "loss.beta=0.4", "--set", "training.output_dir=runs/grid/divergence=js")
    assert other.exit_code == 2
    assert "loss.beta: the run has 0.5, the recipe 0.4" in other.output


def test_a_run_of_before_there_were_divergences_is_continued_and_compared(world):
    short = ["--config", world / "recipe.yaml", *SHORT, "--set", "training.max_steps=3"]
    assert run("train", *short, "--set", "training.output_dir=runs/two/old").exit_code == 0
    assert (
        run("train", *short, "--set", "training.output_dir=runs/two/new", "--set", "loss.divergence=tv").exit_code == 0
    )
    old = world / "runs" / "two" / "old"
    facts = json.loads((old / "run.json").read_text())
    assert not {"loss.divergence", "loss.beta"} & facts["identity"].keys()
    recipe = yaml.safe_load((old / "recipe.yaml").read_text())
    del recipe["loss"]["divergence"], recipe["loss"]["beta"], facts["objective"]
    (old / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (old / "run.json").write_text(json.dumps(facts))
    rows = json.loads(run("compare", world / "runs" / "two", "--json").stdout)["runs"]
    assert [row["settings"] for row in rows] == [{"loss.divergence": "tv"}, {"loss.divergence": "forward_kl"}]
    again = run("train", *short, "--set", "training.output_dir=runs/two/old", "--set", "loss.divergence=forward_kl")
    assert again.exit_code == 0
    assert "is finished" in again.output


def test_comparing_what_is_no_run_is_refused(tmp_path):
    refused = run("compare", tmp_path)
    assert refused.exit_code == 2
    assert "pass the directory of a run" in refused.output
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text('{"identity": {}}')
    begun = run("compare", tmp_path)
    assert begun.exit_code == 0
    assert "begun (not finished)" in begun.output


def test_points_that_differ_in_nothing_that_has_an_effect_are_one_run(world):
    grid = ["divergence=forward_kl,js,tv", "beta=0.1,0.5"]
    runs = grid_runs(world / "recipe.yaml", [], grid)
    assert [(run.name, run.points, run.idle) for run in runs] == [
        ("divergence=forward_kl", 2, ("loss.beta",)),
        ("divergence=js,beta=0.1", 1, ()),
        ("divergence=js,beta=0.5", 1, ()),
        ("divergence=tv", 2, ("loss.beta",)),
    ]
    assert [run.recipe.loss.beta for run in runs] == [None, 0.1, 0.5, None]
    hard = grid_runs(
        world / "recipe.yaml", [], ["alpha=0,1", "temperature=1,2", "training.seed=0,1", "divergence=js,tv"]
    )
    assert [run.name for run in hard if run.points > 1] == ["alpha=0,seed=0", "alpha=0,seed=1"]
    assert sum(run.points for run in hard) == 16
    assert len(hard) == 10
    command = ["sweep", "--config", world / "recipe.yaml", *SHORT, "--set", "training.max_steps=1"]
    options = [part for text in ("alpha=0,1", "temperature=1,2", "training.seed=0,1") for part in ("--grid", text)]
    shown = run(*command, *options)
    assert shown.exit_code == 0, shown.output
    assert "6 runs below" in shown.output
    assert (
        "8 points of the grid are 6 runs: alpha=0,seed=0 stands for 2, in which loss.temperature has no effect; "
        "alpha=0,seed=1 stands for 2" in shown.output
    )
    found = json.loads(run("compare", world / "runs" / "grid", "--json").stdout)
    assert [(group["name"], group["seeds"], group["kl"]["count"]) for group in found["groups"]] == [
        ("hard", 2, 2),
        ("top_k 64, forward_kl, T 1, alpha 1", 2, 2),
        ("top_k 64, forward_kl, T 2, alpha 1", 2, 2),
    ]
    assert all(row["validation_kl"] > 0 for row in found["runs"])
    at_one = next(row for row in found["runs"] if row["name"] == "alpha=1,temperature=1,seed=0")
    assert at_one["validation_kl"] == pytest.approx(at_one["validation_kd"])


def test_runs_of_a_sweep_are_evaluated_under_their_names_on_one_cache(exact_world):
    """Kinds of targets, whose own KL is not comparable, are judged by one evaluation of all."""
    short = ["--config", exact_world / "recipe.yaml", *SHORT, "--set", "training.max_steps=1"]
    swept = run("sweep", *short, "--grid", "cache.path=cache.zarr,exact.zarr", "--grid", "temperature=1")
    assert swept.exit_code == 0, swept.output
    assert "Best: not known. KL on stored entries is a lower bound" in swept.output
    grid = exact_world / "runs" / "grid"
    models = [part for each in sorted(grid.iterdir()) for part in ("--model", f"{each.name}={each / 'best'}")]
    assert len(models) == 4
    output = exact_world / "judged"
    quick = ["--timed", 1, "--requests", 1, "--limit", 2, "--max-new-tokens", 2, "--output", output]
    measured = run("eval", "--config", exact_world / "recipe.yaml", "--no-progress", *models, *quick)
    assert measured.exit_code == 0, measured.output
    found = json.loads(run("compare", grid, "--json", "--evaluation", output).stdout)
    assert {group["evaluated_on"] for group in found["groups"]} == {"exact"}
    assert all(group["evaluation_kl"]["mean"] > 0 for group in found["groups"])
    assert found["best"] is None or found["best"]["by"] in ("evaluation_kl", "exact_match")
