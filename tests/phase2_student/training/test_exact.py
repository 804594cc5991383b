"""Every command beside a training knows a run from exact targets (tests/families compares it with the teacher in memory)."""

import json

from run_cases import run


def test_every_command_knows_a_run_from_exact_targets(exact_world):
    config = ["--config", exact_world / "recipe.yaml"]
    short = ["--set", "training.max_steps=2", "--no-progress"]
    swept = run("sweep", *config, *short, "--grid", "temperature=1,2")
    assert swept.exit_code == 0, swept.output
    assert run("train", *config, *short, "--set", "training.output_dir=runs/b").exit_code == 0
    again = run("train", *config, *short, "--set", "training.output_dir=runs/b")
    assert "is finished" in again.output
    compared = run("compare", exact_world / "runs" / "a", exact_world / "runs" / "b")
    assert compared.exit_code == 0, compared.output
    measured = run(
        "eval", *config, "--set", "training.output_dir=runs/b", "--no-progress", "--model", "base", "--model", "student",
        "--timed", 1, "--requests", 1, "--limit", 4, "--max-new-tokens", 4,
    )  # fmt: skip
    assert measured.exit_code == 0, measured.output
    assert "KL over the whole distributions of the exact cache at T = 1" in measured.output
    written = json.loads(next((exact_world / "runs" / "b" / "evaluation").glob("evaluation_*.json")).read_text())
    for model in written["models"]:
        assert model["distance_targets"] == "exact"
        assert all(sample["kl_sum"] > 0 and sample["soft_positions"] > 0 for sample in model["samples"])
    reported = run("report", exact_world / "runs" / "b", "--output", exact_world / "report.html")
    assert reported.exit_code == 0, reported.output
    page = (exact_world / "report.html").read_text()
    assert "MB once for the head" in page
    facts = json.loads((exact_world / "runs" / "b" / "run.json").read_text())
    assert facts["identity"]["targets"] == "exact"
    assert facts["cache_digest"]


def test_a_run_on_a_top_k_cache_is_not_continued_on_exact_targets(exact_world):
    command = ["train", "--config", exact_world / "recipe.yaml", "--no-progress", "--set", "training.max_steps=1"]
    assert run(*command, "--set", "cache.path=cache.zarr").exit_code == 0
    other = run(*command)
    assert other.exit_code == 2
    assert "targets: the run has 'cache', the recipe 'exact'" in other.output
