"""`data.validation: none`: it trains, says what is missing, and the student is final/."""

import json

import pytest
from click.testing import CliRunner

from firstsight.recipe import load_recipe
from phase1_teacher.cli import main as teacher
from phase2_student.cli import main as student


def run(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("stated", [{}, {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}])
def test_a_training_without_validation_data(world, stated):
    options = [
        "--config",
        world / "recipe.yaml",
        "--no-progress",
        "--set",
        "data.validation=none",
        "--set",
        "training.max_steps=3",
    ]
    for name, value in stated.items():
        options += ["--set", f"training.{name}={value}"]
    note = "no validation data: there is no validation loss and no best/, the student is final/"
    planned = run(student, "plan", *options)
    assert "26 to train on, 0 to validate" in planned
    assert note in planned
    assert "32" not in run(teacher, "plan", *options).split("Samples")[1].split(",")[0]
    trained = run(student, "train", *options)
    assert note in trained
    assert ("without effect: training.eval_strategy, training.eval_steps, training.eval_on_start" in trained) == bool(
        stated
    )
    assert "3 steps in " in trained
    assert "no validation loss" in trained.splitlines()[-1]
    assert "best" not in trained.splitlines()[-1]
    directory = world / "runs" / "a"
    assert not (directory / "best").exists()
    assert (directory / "final" / "config.json").is_file()
    history = json.loads((directory / "training_history.json").read_text())
    assert [row["validation"] for row in history] == [None]
    assert json.loads((directory / "run.json").read_text())["validation_samples"] == 0
    assert "is finished" in run(student, "train", *options)
    if stated:
        return
    assert "expected rows to measure on, got none; give a file" in run(
        student, "eval", *options[:2], "--no-progress", *options[3:5], code=2
    )
    assert "would be about" in run(student, "export", "--int8", "--dry-run", *options[:2])
    assert "a " in run(student, "compare", directory)
    run(student, "report", directory, "--output", world / "page.html")


def test_how_it_is_written(world):
    for text in ("none", "null", "~"):
        assert load_recipe(world / "recipe.yaml", [f"data.validation={text}"]).data.validation is None
    recipe = load_recipe(world / "recipe.yaml", ["data.validation=none"])
    assert [source.part for source in recipe.sources()] == ["train"]
    assert recipe.dump()["data"]["validation"] is None
