"""The demo's commands, in their order; `make demo` runs them."""

import shlex

import pytest

from firstsight.demo import run
from firstsight.errors import FirstSightError
from firstsight.recipe import load_recipe


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What a demo would run, as text; data are only named."""
    found = []

    def record(command, *arguments):
        found.append(shlex.join([command, *arguments]).replace(str(tmp_path), "."))
        if arguments[:2] == ("data", "synth"):
            (tmp_path / "demo" / "data").mkdir()
            for name in ("validation.jsonl", *(["labelled.jsonl"] if "--labels" in arguments else [])):
                (tmp_path / "demo" / "data" / name).touch()

    monkeypatch.setattr(run, "_run", record)
    return found


def test_few_labels_are_compared_with_labels_and_with_the_teachers_answers(commands, tmp_path):
    run.run_demo(tmp_path / "demo", "few-labels")
    programs = [" ".join(command.split()[:2]) for command in commands]
    trained = ["fs-student train", "fs-teacher answers", "fs-teacher dump", "fs-student train", "fs-student train"]
    assert programs == ["firstsight data", "fs-teacher dump", *trained, "fs-student eval", "fs-student report"]
    recipe = load_recipe(tmp_path / "demo" / "recipe.yaml")
    assert recipe.cache.generate_missing
    assert recipe.loss.temperature == 2.0
    hard, answers, distilled = (command for command in commands if command.startswith("fs-student train"))
    assert "loss.alpha=0" in hard
    assert "data.train=labelled.jsonl" in hard
    assert "answers.jsonl" in answers
    assert "alpha" not in distilled


def test_clean_labels_are_compared_with_the_cache_alone(commands, tmp_path):
    run.run_demo(tmp_path / "demo", "clean")
    assert sum(command.startswith("fs-student train") for command in commands) == 2
    assert not load_recipe(tmp_path / "demo" / "recipe.yaml").cache.generate_missing


@pytest.mark.parametrize(("first", "second"), [("few-labels", "clean"), ("clean", "few-labels")])
def test_a_directory_of_another_regime_is_refused(commands, tmp_path, first, second):
    run.run_demo(tmp_path / "demo", first)
    count = len(commands)
    with pytest.raises(FirstSightError, match=f"holds the demo of another regime \\({first}\\)"):
        run.run_demo(tmp_path / "demo", second)
    assert len(commands) == count
