"""What a run is bound to besides its recipe: the files of its student and its validation samples. Older runs recorded neither."""

import json
import shutil

import pytest
import torch
from run_cases import assert_same_weights, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture
def stopped(world, made_run):
    """A run that was stopped after step 12 of 14, with a best/ of its first epoch; its student's files are its own."""
    directory = shutil.copytree(made_run, world / "runs" / "a")
    for name in ("final", "checkpoint-14"):
        shutil.rmtree(directory / name)
    shared = (world / "models").resolve()
    (world / "models").unlink()
    shutil.copytree(shared, world / "models")
    return directory


def change_bound(directory, change):
    facts = json.loads((directory / "run.json").read_text())
    change(facts)
    (directory / "run.json").write_text(json.dumps(facts))


def other_weights(student):
    path = student / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    name = sorted(state)[-1]
    state[name] = torch.randn_like(state[name].float()).to(state[name].dtype)
    save_file(state, path, metadata=metadata)


def other_template(student):
    path = student / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def other_images(student):
    path = next(
        path for path in (student / "preprocessor_config.json", student / "processor_config.json") if path.exists()
    )
    content = json.loads(path.read_text())
    content.get("image_processor", content)["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(content))


CHANGES = [
    (other_weights, "student weights"),
    (other_template, "student chat template"),
    (other_images, "student image settings"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_a_run_does_not_continue_on_another_student(world, stopped, change, name):
    change(world / "models" / "student")
    before = {path: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    refused = run("train", "--config", world / "recipe.yaml", "--no-progress")
    assert refused.exit_code == 2, refused.output
    assert f"  {name}: the run has '" in refused.output
    assert {path: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_a_finished_run_of_another_student_is_not_called_finished(world, stopped):
    shutil.copytree(stopped / "best", stopped / "final")
    command = ("train", "--config", world / "recipe.yaml", "--no-progress")
    assert "is finished" in run(*command).output
    other_weights(world / "models" / "student")
    assert run(*command).exit_code == 2


@pytest.mark.parametrize("change", [each for each, _ in CHANGES])
def test_a_run_that_recorded_nothing_continues(world, stopped, change):
    change_bound(stopped, lambda facts: facts.pop("bound"))
    change(world / "models" / "student")
    again = run("train", "--config", world / "recipe.yaml", "--no-progress")
    assert again.exit_code == 0, again.output
    assert json.loads((stopped / "run.json").read_text())["bound"].keys() >= {name for _, name in CHANGES}


def test_unchanged_files_in_another_place_are_the_same_student(world, stopped, made_run):
    again = run("train", "--config", world / "recipe.yaml", "--no-progress")
    assert again.exit_code == 0, again.output
    assert_same_weights(stopped / "final", made_run / "final")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.validation=few.jsonl"], "the recipe '"),
        (["data.validation=none"], "the recipe 'none'"),
        (["training.eval_strategy=no"], "the recipe 'none'"),
    ],
)
def test_validations_of_a_run_are_all_on_the_same_samples(world, stopped, made_world, settings, words, recorded):
    """And best/ never remains from before in a run that goes on without validations."""
    data = made_world / "data"
    rows = (data / "validation.jsonl").read_text().splitlines(keepends=True)
    (data / "few.jsonl").write_text("".join(rows[:2]))
    if not recorded:
        change_bound(stopped, lambda facts: facts.pop("bound"))
    told = [part for text in settings for part in ("--set", text)]
    again = run("train", "--config", world / "recipe.yaml", "--no-progress", *told)
    if not recorded and words == "the recipe '":
        assert again.exit_code == 0, again.output
        return
    assert again.exit_code == 2, again.output
    assert "  validation samples: the run has '" in again.output
    assert words in again.output
    assert not (stopped / "final").exists()


@pytest.mark.usefixtures("stopped")
def test_the_order_of_validation_samples_is_no_difference(world, made_world):
    data = made_world / "data"
    rows = (data / "validation.jsonl").read_text().splitlines(keepends=True)
    (data / "turned.jsonl").write_text("".join(reversed(rows)))
    again = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "data.validation=turned.jsonl")
    assert again.exit_code == 0, again.output
    (data / "few.jsonl").write_text("".join(rows[:2]))
    finished = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", "data.validation=few.jsonl")
    assert finished.exit_code == 0, finished.output  # nothing is chosen by a validation any more
    assert "is finished" in finished.output


def test_a_run_without_validations_continues_without_them(world, stopped):
    change_bound(stopped, lambda facts: facts["bound"].update({"validation samples": "none"}))
    shutil.rmtree(stopped / "best")
    command = ("train", "--config", world / "recipe.yaml", "--no-progress")
    refused = run(*command)
    assert refused.exit_code == 2
    assert "validation samples: the run has 'none'" in refused.output
    again = run(*command, "--set", "training.eval_strategy=no")
    assert again.exit_code == 0, again.output
    assert not (stopped / "best").exists()
