"""Rows of equal content: each is trained and counted, their targets are stored once, and every plan says how many."""

import json

from click.testing import CliRunner

from firstsight.recipe import load_recipe
from phase1_teacher.cli import main as teacher
from phase2_student.cli import main as student
from phase2_student.training.prepare import prepare


def repeat(world, times):
    """The world's training file with every row `times` times, and one of them among the validation rows."""
    data = world / "data"
    rows = (data / "train.jsonl").read_text().splitlines()
    leaked = (data / "validation.jsonl").read_text() + rows[0] + "\n"
    data_link = world / "rows"
    data_link.mkdir()
    (data_link / "train.jsonl").write_text("\n".join(rows * times) + "\n")
    (data_link / "validation.jsonl").write_text(leaked)
    return ["--set", "data.root=rows", "--set", f"data.image_root={data}"], len(rows)


def test_training_and_both_plans_count_every_row(world):
    settings, count = repeat(world, 3)
    recipe = load_recipe(world / "recipe.yaml", settings[1::2])
    plan = prepare(recipe, progress=False)
    assert len(plan.train) == 3 * count
    assert len(plan.train.lengths()) == 3 * count
    assert [plan.train[i].name for i in (0, count)] == [plan.train[0].name, f"{plan.train[0].name}#2"]
    options = ["plan", "--config", str(world / "recipe.yaml"), "--no-progress", *settings]
    shown = CliRunner().invoke(student, options, catch_exceptions=False)
    assert f"{3 * count:,} to train on" in shown.output
    assert f"{2 * count:,} of {3 * count:,} train rows repeat an earlier one; each is trained on" in shown.output
    assert "1 validation row is also in the training data (validation.jsonl:" in shown.output
    demand = json.loads(CliRunner().invoke(teacher, [*options, "--json"], catch_exceptions=False).output)["demand"]
    validation = len(plan.validation) - 1
    assert (demand["rows"], demand["samples"]) == (3 * count + validation + 1, count + validation)
    assert demand["present"] == demand["samples"]  # the cache of the same rows, each once
    assert len(demand["notes"]) == 2
