"""A cache that does not fit the data or the student is refused by name, before any weight is loaded."""

import json
import shutil

import numpy as np
import pytest
from run_cases import run

from firstsight.data.samples import load_samples
from firstsight.errors import AlignmentError
from firstsight.models import load_processor
from firstsight.prompting import Prompter
from firstsight.recipe import load_recipe
from phase2_student.data.dataset import DistillationDataset
from storage.reader import open_cache
from storage.targets import SampleTargets, Targets


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    monkeypatch.setattr("firstsight.models._load", lambda *_, **__: pytest.fail("weights were loaded"))


def refused(world, *more):
    result = run("train", "--config", world / "recipe.yaml", "--no-progress", *more)
    assert result.exit_code == 2, (result.output, result.exception)
    assert not (world / "runs").exists()
    return result.stderr


def own_data(world):
    """The world's data as files of its own, to be changed."""
    source = (world / "data").resolve()
    (world / "data").unlink()
    return shutil.copytree(source, world / "data")


def test_samples_without_targets_are_counted_and_named(world):
    rows = (own_data(world) / "train.jsonl").read_text().splitlines()
    for index in (3, 7):
        row = json.loads(rows[index])
        row["messages"][0]["content"][-1]["text"] += " Really?"
        rows[index] = json.dumps(row)
    (world / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    error = refused(world)
    assert "2 of 26 samples have no targets in" in error
    assert "train.jsonl:4" in error
    assert "train.jsonl:8" in error
    assert "run fs-teacher dump" in error


def test_a_new_image_is_a_missing_sample(world):
    data = own_data(world)
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    name = rows[0]["images"][0]
    (data / name).write_bytes((data / name).read_bytes() + b"\0")
    seen = sum(name in row["images"] for row in rows)
    assert f"{seen} of 6 samples have no targets" in refused(world)


def test_the_cache_of_another_student_is_refused_with_the_difference(world):
    from transformers import AutoTokenizer

    other = shutil.copytree(world / "models" / "student", world / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    error = refused(world, "--set", "student.model=other")
    assert "student.tokens: the cache has" in error


def test_a_head_of_another_size_is_refused_with_the_difference(world):
    other = shutil.copytree(world / "models" / "student", world / "other")
    config = json.loads((other / "config.json").read_text())
    rows = config["text_config"]["vocab_size"]
    for part in (config, config["text_config"]):
        if "vocab_size" in part:
            part["vocab_size"] = rows + 64
    (other / "config.json").write_text(json.dumps(config))
    assert f"vocabulary_size: the cache has {rows}, requested is {rows + 64}" in refused(
        world, "--set", "student.model=other"
    )


def test_a_temperature_between_no_nodes_is_refused(world):
    error = refused(world, "--set", "cache.temperatures=[1, 8]", "--set", "loss.temperature=6")
    assert "temperature 6 lies outside the cache's nodes" in error


class Altered:
    """A cache that holds one target id of one sample wrong."""

    def __init__(self, cache, key, position):
        self.cache, self.key, self.position = cache, key, position

    def __getattr__(self, name):
        return getattr(self.cache, name)

    def __contains__(self, key):
        return key in self.cache

    def __getitem__(self, key):
        cached = self.cache[key]
        if key != self.key:
            return cached
        arrays = {name: np.array(array) for name, array in vars(cached.targets).items()}
        if self.position == len(arrays["target_ids"]):
            arrays = {name: array[:-1] for name, array in arrays.items()}
        else:
            arrays["target_ids"][self.position] += 1
        return SampleTargets(key=key, targets=Targets(**arrays), hard=cached.hard)


def test_a_wrong_target_id_is_found_at_every_position(world):
    recipe = load_recipe(world / "recipe.yaml")
    cache = open_cache(recipe.cache_location)
    prompter = Prompter(load_processor(world / "models" / "student", recipe.student), max_length=512)
    samples = load_samples(recipe.file("train"), recipe.data_root)
    sample = samples[5]
    count = len(prompter.answer_ids(sample.answer))
    assert count > 3
    for position in range(count + 1):  # the last: a target too few
        with pytest.raises(AlignmentError) as error:
            DistillationDataset(samples, prompter, Altered(cache, sample.key, position), temperature=2.0)
        wanted = count - 1 if position == count else position
        assert f"train.jsonl:6: sample '{sample.id}': answer position {wanted}: the student's token is" in str(
            error.value
        )
        assert "dump again for this student" in str(error.value)
