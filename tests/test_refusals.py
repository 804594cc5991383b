"""What a user can get wrong before any model is loaded: one line that names key or path, exit code 2, no traceback."""

import json

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from phase1_teacher.cli import main as teacher_main
from phase2_student.cli import main as student_main


@pytest.fixture
def recipe(tmp_path, models):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (56, 56), "red").save(data / "one.png")
    row = {
        "id": "a",
        "images": ["one.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
        ],
    }
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    content = {
        "teacher": {"model": str(models / "teacher")},
        "student": {"model": str(models / "student")},
        "data": {"root": "data"},
        "cache": {"top_k": 8},
        "training": {"output_dir": "run"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("firstsight.models.loading._load", refuse)


def refused(main, *arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.stderr
    return line


COMMANDS = [(teacher_main, "dump"), (student_main, "train")]
OVERRIDES = [
    ("loss.alpha=1.7", "loss.alpha"),
    ("loss.temperature=0", "loss.temperature"),
    ("loss.temperature=9", "cache.temperatures"),
    ("cache.top_k=0", "cache.top_k"),
    ("cache.topk=4", "top_k"),
    ("lss.alpha=0.5", "loss"),
    ("training.learning_rat=1", "learning_rate"),
    ("data.train=nowhere.jsonl", "nowhere.jsonl"),
    ("student.model=models/nowhere", "models/nowhere"),
]


@pytest.mark.parametrize(("main", "command"), COMMANDS, ids=["dump", "train"])
@pytest.mark.parametrize(("override", "named"), OVERRIDES)
def test_a_bad_key_or_path_is_named(recipe, main, command, override, named):
    assert named in refused(main, command, "--config", recipe, "--set", override)


@pytest.mark.parametrize(("main", "command"), COMMANDS, ids=["dump", "train"])
def test_a_missing_image_is_named(recipe, main, command):
    (recipe.parent / "data" / "one.png").unlink()
    line = refused(main, command, "--config", recipe)
    assert "one.png" in line
    assert "train.jsonl:1" in line


@pytest.mark.parametrize(("main", "command"), COMMANDS, ids=["dump", "train"])
def test_a_missing_recipe_is_named(recipe, main, command):
    assert "none.yaml" in refused(main, command, "--config", recipe.parent / "none.yaml")


def test_a_missing_teacher_is_named(recipe):
    assert "nowhere" in refused(teacher_main, "dump", "--config", recipe, "--set", "teacher.model=models/nowhere")


def test_training_without_a_cache_says_what_to_run(recipe):
    assert "fs-teacher dump" in refused(student_main, "train", "--config", recipe)
