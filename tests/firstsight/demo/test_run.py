"""The demo's commands, in their order; `make demo` runs them."""

import itertools
import shlex
import shutil

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from firstsight.cli import main
from firstsight.demo import run
from firstsight.demo.miniature import STUDENT_DIR
from firstsight.demo.synth.writing import descriptions, questions
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
            (tmp_path / "demo" / "data" / "validation.jsonl").touch()

    monkeypatch.setattr(run, "_run", record)
    return found


def programs(commands):
    return [" ".join(command.split()[:2]) for command in commands]


ENDING = ["fs-student train", "fs-teacher answers", "fs-teacher dump", "fs-student train", "fs-student train"]


def test_few_labels_are_compared_with_labels_and_with_the_teachers_answers(commands, tmp_path):
    run.run_demo(tmp_path / "demo", "few-labels")
    assert programs(commands) == ["firstsight data", "fs-teacher dump", *ENDING, "fs-student eval", "fs-student report"]
    recipe = load_recipe(tmp_path / "demo" / "recipe.yaml")
    assert recipe.cache.generate_missing
    assert recipe.loss.temperature == 2.0
    hard, answers, distilled = (command for command in commands if command.startswith("fs-student train"))
    assert "loss.alpha=0" in hard
    assert "data.train=labelled.jsonl" in hard
    assert "data.train=[labelled.jsonl, answers.jsonl]" in answers
    assert "alpha" not in distilled
    assert "data.train" not in distilled


@pytest.mark.parametrize(("regime", "option"), [("noisy", "--swapped 0.4"), ("ambiguous", "--described")])
def test_labels_that_are_not_trusted_are_compared_with_the_teachers_answers_to_all_questions(
    commands, tmp_path, regime, option
):
    run.run_demo(tmp_path / "demo", regime)
    # labels and answers lie in caches of their own
    own_dump = ["fs-teacher dump", *ENDING] if regime == "noisy" else [ENDING[0], "fs-teacher dump", *ENDING[1:]]
    assert programs(commands) == [
        "firstsight data",
        "fs-teacher dump",
        *own_dump,
        "fs-student eval",
        "fs-student report",
    ]
    assert option in commands[0]
    recipe = load_recipe(tmp_path / "demo" / "recipe.yaml")
    assert recipe.cache.generate_missing == (regime == "noisy")
    assert recipe.source("train").files[0].name == ("questions.jsonl" if regime == "noisy" else "train.jsonl")
    hard, answers, distilled = (command for command in commands if command.startswith("fs-student train"))
    assert ("data.train=train.jsonl" in hard) == (regime == "noisy")
    assert "data.train=answers.jsonl" in answers
    source = next(command for command in commands if command.startswith("fs-teacher answers"))
    assert ("own.zarr" in source) == (regime == "ambiguous")
    assert "data.train" not in distilled, "the recipe is its own"


def test_no_answer_of_the_teacher_is_cut(commands, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(STUDENT_DIR)
    for regime, draw in (("few-labels", questions), ("noisy", questions), ("ambiguous", descriptions)):
        directory = tmp_path / "demo"
        run.run_demo(directory, regime)
        longest = max(len(tokenizer(each.answer)["input_ids"]) + 1 for each in draw(0, "train", 700))
        assert longest < load_recipe(directory / "recipe.yaml").cache.generate_max_tokens == run.KINDS[regime].longest
        assert f"--max-new-tokens {run.KINDS[regime].longest}" in commands[-2]
        shutil.rmtree(directory)


def test_clean_labels_are_compared_with_the_cache_alone(commands, tmp_path):
    run.run_demo(tmp_path / "demo", "clean")
    assert sum(command.startswith("fs-student train") for command in commands) == 2
    assert not load_recipe(tmp_path / "demo" / "recipe.yaml").cache.generate_missing


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(run.KINDS, 2)))
def test_a_directory_of_another_regime_is_refused(commands, tmp_path, first, second):
    run.run_demo(tmp_path / "demo", first)
    count = len(commands)
    with pytest.raises(FirstSightError, match=f"holds the demo of another regime \\({first}\\)"):
        run.run_demo(tmp_path / "demo", second)
    assert len(commands) == count


def test_a_second_run_draws_and_answers_nothing_again(commands, tmp_path):
    run.run_demo(tmp_path / "demo", "noisy")
    (tmp_path / "demo" / "data" / "answers.jsonl").touch()
    count = len(commands)
    run.run_demo(tmp_path / "demo", "noisy")
    again = programs(commands[count:])
    assert "firstsight data" not in again
    assert "fs-teacher answers" not in again


def test_data_of_another_origin_are_refused(commands, tmp_path):
    (tmp_path / "demo" / "data").mkdir(parents=True)
    with pytest.raises(FirstSightError, match="data that this demo did not make"):
        run.run_demo(tmp_path / "demo", "clean")
    assert commands == []


def test_the_command_offers_every_regime_and_says_what_it_is():
    text = " ".join(CliRunner().invoke(main, ["demo", "--help"], terminal_width=200).output.split())
    for name, kind in run.KINDS.items():
        assert f"{name}: {kind.help}" in text
    assert f"default: {run.DEFAULT_REGIME}" in text
