"""A cache that does not fit the data or the student is refused by name, before any weight is loaded."""

import json
import shutil

import numpy as np
import pytest
import yaml
from run_cases import run

from firstsight.data.samples import load_samples
from firstsight.errors import AlignmentError
from firstsight.pair import load_prompter
from firstsight.recipe import load_recipe
from phase2_student.data.cached import CachedDataset
from phase2_student.data.contract import check_made_for
from phase2_student.training.prepare import prepare
from storage.errors import SpecMismatch, TemperatureOutOfRange
from storage.reader import open_cache
from storage.targets import SampleTargets, Targets


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    monkeypatch.setattr("firstsight.models.loading._load", lambda *_, **__: pytest.fail("weights were loaded"))


def refused(world, *more):
    result = run("train", "--config", world / "recipe.yaml", "--no-progress", *more)
    assert result.exit_code == 2, (result.output, result.exception)
    assert not (world / "runs").exists()
    return result.stderr


def compare(world, recipe, cache):
    """A cache of the world's student with what a recipe states of the dump."""
    check_made_for(
        recipe, cache, load_prompter(world / "models" / "student", recipe.student, recipe.data), cache.vocabulary_size
    )


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
    assert f"vocabulary_size: the cache has {rows}, the request has {rows + 64}" in refused(
        world, "--set", "student.model=other"
    )


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        (
            "teacher.model=Qwen/Qwen2-VL-7B-Instruct",
            'teacher.model: the cache has "teacher", the request has "Qwen/Qwen2-VL-7B-Instruct"',
        ),
        ("teacher.model=/elsewhere/other", 'teacher.model: the cache has "teacher", the request has "other"'),
        ("teacher.revision=abc", 'teacher.revision: the cache has null, the request has "abc"'),
        ("teacher.quantization=int8", 'teacher.quantization: the cache has "none", the request has "int8"'),
        ("teacher.dtype=bfloat16", 'teacher.dtype: the cache has "float32", the request has "bfloat16"'),
        (
            "teacher.attn_implementation=eager",
            'teacher.attn_implementation: the cache has "sdpa", the request has "eager"',
        ),
        ("teacher.batch_tokens=512", "teacher.batch_tokens: the cache has 16384, the request has 512"),
        ("teacher.max_pixels=3136", "teacher.image_processor: the cache has {"),
        ("data.system_prompt=Be brief.", 'teacher.system_prompt: the cache has null, the request has "Be brief."'),
        ("cache.top_k=32", "top_k: the cache has 64, the request has 32"),
        (
            "cache.temperatures=[1, 2, 8]",
            "temperatures: the cache has [1, 1.5, 2, 4], the request has [1, 2, 8]",
        ),
        ("cache.generate_missing=true", "generation: the cache has false, the request has true"),
    ],
)
def test_what_the_recipe_states_is_compared(world, setting, difference):
    error = refused(world, "--set", setting)
    assert f"  {difference}" in error
    assert "(1 difference)" in error


def test_all_differences_are_shown_at_once(world):
    error = refused(world, "--set", "teacher.model=Qwen/Other", "--set", "cache.top_k=32")
    assert "(2 differences)" in error


def stating(world, **changes):
    """The recipe with keys of sections changed; None: left out."""
    path = world / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        if value is None:
            recipe[section].pop(key, None)
        else:
            recipe[section][key] = value
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


def test_a_recipe_that_is_silent_about_the_dump_trains_on_any_quantization(world):
    recipe = stating(world, teacher__quantization=None, teacher__dtype=None)
    assert recipe.teacher.quantization == "int8"
    assert len(prepare(recipe, progress=False).train) == 26


def test_the_default_teacher_counts_as_stated(world):
    stating(world, teacher__model=None)
    assert 'teacher.model: the cache has "teacher", the request has "Qwen/Qwen2-VL-7B-Instruct"' in refused(world)


@pytest.mark.parametrize("model", ["models/teacher", "/nowhere/teacher", "~/nowhere/teacher", "teacher"])
def test_the_teacher_need_not_be_there_under_its_name(world, model):
    models = (world / "models").resolve()
    (world / "models").unlink()
    (world / "models").mkdir()
    (world / "models" / "student").symlink_to(models / "student")
    assert len(prepare(stating(world, teacher__model=model), progress=False).train) == 26


@pytest.mark.parametrize(("pixels", "fits"), [(401408, True), (3136, False)])
def test_the_teachers_resolution_is_compared_without_it_too(world, pixels, fits):
    cache = open_cache(world / "cache.zarr")
    size = cache.spec["teacher"]["image_processor"]["size"]
    compare(world, stating(world, teacher__max_pixels=size["longest_edge"]), cache)  # by the processor itself
    size["longest_edge"] = 401408
    recipe = stating(world, teacher__model="/nowhere/teacher", teacher__max_pixels=pixels)
    if fits:
        compare(world, recipe, cache)
    else:
        with pytest.raises(SpecMismatch, match="longest_edge: the cache has 401408, the request has 3136"):
            compare(world, recipe, cache)


def test_what_was_generated_is_compared_where_it_is_named(world):
    cache = open_cache(world / "cache.zarr")
    cache.spec["generation"] = {"max_tokens": 128, "temperature": 0.0, "seed": 0}
    compare(world, stating(world), cache)
    compare(world, stating(world, cache__generate_missing=True, cache__generate_seed=0), cache)
    with pytest.raises(SpecMismatch, match=r"generation.seed: the cache has 0, the request has 3"):
        compare(world, stating(world, cache__generate_seed=3), cache)
    with pytest.raises(SpecMismatch, match=r"generation: the cache has true, the request has false"):
        compare(world, stating(world, cache__generate_missing=False, cache__generate_seed=0), cache)


def test_a_temperature_between_no_nodes_is_refused(world):
    recipe = load_recipe(world / "recipe.yaml")
    prompter = load_prompter(world / "models" / "student", recipe.student, max_length=512)
    samples = load_samples(recipe.source("train"))
    with pytest.raises(TemperatureOutOfRange, match="temperature 6 lies outside the cache's nodes"):
        CachedDataset(samples, prompter, open_cache(recipe.cache_location), temperature=6.0)


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
    prompter = load_prompter(world / "models" / "student", recipe.student, max_length=512)
    samples = load_samples(recipe.source("train"))
    sample = samples[5]
    count = len(prompter.answer_ids(sample.answer))
    assert count > 3
    for position in range(count + 1):  # the last: a target too few
        with pytest.raises(AlignmentError) as error:
            CachedDataset(samples, prompter, Altered(cache, sample.key, position), temperature=2.0)
        wanted = count - 1 if position == count else position
        assert f"train.jsonl:6: sample '{sample.id}': answer position {wanted}: the student's token is" in str(
            error.value
        )
        assert "dump again for this student" in str(error.value)
