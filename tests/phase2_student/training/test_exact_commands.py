"""Every command beside a training knows a run from exact targets (tests/families compares it with the teacher in memory)."""

import json

import yaml
from run_cases import run

from firstsight.recipe import load_recipe_content
from phase2_student.training.prepare import prepare


def test_every_command_knows_a_run_from_exact_targets(exact_world):
    config = ["--config", exact_world / "recipe.yaml"]
    sweep = ["sweep", *config, "--set", "training.max_steps=1", "--no-progress", "--grid", "temperature=1,7"]
    swept = run(*sweep, "--set", "cache.targets=exact")
    assert swept.exit_code == 0, swept.output
    own = exact_world / "runs" / "a" / "temperature=7"
    compared = run("compare", exact_world / "runs" / "a")
    assert compared.exit_code == 0, compared.output
    there = ["--set", f"training.output_dir={own}"]
    measured = run(
        "eval", *config, *there, "--no-progress", "--model", "student", "--timed", 1, "--requests", 1, "--limit", 2,
        "--max-new-tokens", 2,
    )  # fmt: skip
    assert measured.exit_code == 0, measured.output
    assert "KL over the whole distributions of the exact cache at T = 1" in measured.output
    (model,) = json.loads(next((own / "evaluation").glob("evaluation_*.json")).read_text())["models"]
    assert model["distance_targets"] == "exact"
    assert all(sample["kl_sum"] > 0 and sample["soft_positions"] > 0 for sample in model["samples"])
    reported = run("report", own, "--output", exact_world / "report.html")
    assert reported.exit_code == 0, reported.output
    assert "B once for the head" in (exact_world / "report.html").read_text()
    published = run("publish", *config, *there, "--repo", "me/student", "--dry-run", "--output", exact_world / "card")
    assert published.exit_code == 0, published.output
    card = (exact_world / "card" / "README.md").read_text()
    assert "its hidden states and head\nwere stored in a cache" in card
    assert ", exact targets |" in card
    assert "top-k" not in card.split("## Limits")[0].split("## Lineage")[1]
    assert "most likely tokens per position" not in card
    facts = json.loads((own / "run.json").read_text())
    assert facts["identity"]["targets"] == "exact"
    assert facts["cache_digest"]
    again = yaml.safe_load((own / "recipe.yaml").read_text())
    plan = prepare(load_recipe_content(again, directory=exact_world, name="again"), progress=False)
    assert {**plan.identity(), "training.max_steps": 1} == facts["identity"]


def test_a_run_on_a_top_k_cache_is_not_continued_on_exact_targets(exact_world):
    command = ["train", "--config", exact_world / "recipe.yaml", "--no-progress", "--set", "training.max_steps=1"]
    assert run(*command, "--set", "cache.path=cache.zarr").exit_code == 0
    other = run(*command)
    assert other.exit_code == 2
    assert "targets: the run has 'cache', the recipe 'exact'" in other.output
