"""`make verify-real` on the random pair, from directories."""

import re

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from benchmarks import verify_real


@pytest.fixture
def recipe(tmp_path, models):
    path = tmp_path / "recipe.yaml"
    content = {
        "teacher": {
            "model": str(models / "teacher"),
            "quantization": "none",
            "dtype": "float32",
            "device_map": "cpu",
        },
        "student": {"model": str(models / "student"), "dtype": "float32"},
        "cache": {"top_k": 64},
        "training": {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def run(recipe, directory, *options):
    return CliRunner().invoke(
        verify_real.main, [str(directory), "--recipe", str(recipe), "--samples", "6", "--steps", "2", *options]
    )


def test_the_whole_table(tmp_path, recipe, models):
    done = run(recipe, tmp_path / "out", "--set", "data.system_prompt=Be short.")
    assert done.exit_code == 0, done.output
    table = done.stdout
    assert table.startswith(
        f"`python -m benchmarks.verify_real`: {models / 'teacher'} (none) into {models / 'student'}\n"
    )
    for role in ("teacher", "student"):
        assert re.search(
            rf"\| tokens of the {role} \(Qwen2VLProcessor\) \| prompts with images equal 6 of 6, answers 6 of 6 \|",
            table,
        )
    mean, largest = map(float, re.search(r"positions: mean ([\d.]+) nats, .* largest ([\d.]+);", table).groups())
    assert 0 < mean < 0.02
    assert largest < 0.03  # steps of 3/64 nat, and rounding
    masses = re.search(r"mass of the 64 stored entries \| ([\d.]+) at T = 1, ([\d.]+) at T = 2", table).groups()
    assert 0 < float(masses[1]) < float(masses[0]) <= 1
    assert re.search(r"\| dump, 6 samples of \d+ tokens \| [\d.]+ samples/s", table)
    assert re.search(r"\| training, 2 steps, .* \| [\d.]+ samples/s", table)
    assert "| torch | " in table
    assert (tmp_path / "out" / "verify.md").read_text() == table
    again = run(recipe, tmp_path / "out", "--set", "data.system_prompt=Be short.")
    assert again.exit_code == 2
    assert "is complete already, so no dump can be timed; give a new directory" in again.output
    more = run(recipe, tmp_path / "out", "--samples", "7")
    assert more.exit_code == 2
    assert more.output.splitlines()[-1].endswith("holds 6 samples instead of 7; give a new directory")


def test_tokens_that_differ_are_found(tmp_path, recipe, monkeypatch):
    original = verify_real.stock_inputs

    def other(processor, prompter, sample, *, answer):
        inputs = original(processor, prompter, sample, answer=answer)
        return {name: value.clone() for name, value in inputs.items()} | (
            {} if answer else {"input_ids": inputs["input_ids"] + 1}
        )

    monkeypatch.setattr(verify_real, "stock_inputs", other)
    done = run(recipe, tmp_path / "out")
    assert done.exit_code == 1
    assert "**differs:** prompts with images equal 0 of 6, answers 6 of 6" in done.stdout


def test_targets_of_another_position_are_seen(tmp_path, recipe, monkeypatch):
    original = verify_real.answer_span

    def earlier(*given):
        span = original(*given)
        return slice(span.start - 1, span.stop - 1)

    here = verify_real.recipe_here(recipe, tmp_path / "out", 2, ())
    (tmp_path / "out").mkdir()
    rows = verify_real.verify(here, tmp_path / "out", 6)
    assert not any(row.failed for row in rows)
    pair = verify_real.load_pair(here)
    samples = [sample for source in here.sources() for sample in verify_real.load_samples(source)]
    monkeypatch.setattr(verify_real, "answer_span", earlier)
    model = verify_real.load_teacher(pair.directory, here.teacher)
    cache = verify_real.open_cache(here.cache_location)
    apart = np.concatenate(list(verify_real.differences(model, pair, pair.teacher.processor, cache, samples)))
    assert np.abs(apart).max() > 0.1


def test_a_model_that_is_not_there(tmp_path, recipe):
    done = run(recipe, tmp_path / "out", "--set", "teacher.model=/nowhere/at/all")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith("Error: teacher.model: directory /nowhere/at/all not found")
    assert not (tmp_path / "out" / "data").exists()


def test_the_reference_recipe_is_the_default(tmp_path):
    loaded = verify_real.recipe_here(verify_real.REFERENCE, tmp_path, 10, ())
    assert loaded.teacher.model == "Qwen/Qwen2-VL-7B-Instruct"
    assert loaded.training["max_steps"] == 10
