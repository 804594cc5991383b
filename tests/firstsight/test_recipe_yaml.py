"""YAML as recipes are written: no value is silently taken for another one, and what cannot be read is one line."""

from types import NoneType, UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest

from firstsight.errors import RecipeError
from firstsight.recipe import LoraSection, Recipe, check_training, load_recipe
from firstsight.recipe_yaml import Section, read_yaml


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return read


def numbers(annotation):
    """Whether a field takes numbers, alone or in a list, written without the code that is tested."""
    if annotation in (int, float):
        return True
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        return any(numbers(each) for each in get_args(annotation) if each is not NoneType)
    return False


SECTIONS = {
    name: field.annotation for name, field in Recipe.model_fields.items() if name not in ("training", "directory")
}
NUMBERS = [
    f"{name}.{key}"
    for name, section in {**SECTIONS, "student.lora": LoraSection}.items()
    for key, field in section.model_fields.items()
    if numbers(field.annotation)
]


@pytest.mark.parametrize("key", NUMBERS)
def test_true_and_false_are_no_numbers_in_any_key(read, key):
    assert len(NUMBERS) > 15
    assert all(issubclass(section, Section) for section in SECTIONS.values())
    for value in ("yes", "off", "true", "[1, true]"):
        with pytest.raises(RecipeError) as error:
            read("{}", f"{key}={value}")
        assert "\n" not in str(error.value)
        told = f"{key}: must be a number, not true or false (YAML reads yes, no, on and off as these), got "
        assert told in str(error.value)


def test_true_and_false_are_no_numbers_in_training():
    check_training({"learning_rate": 1e-5, "bf16": True, "eval_steps": None, "report_to": "none"})
    for name in ("learning_rate", "max_steps", "save_total_limit", "neftune_noise_alpha"):
        with pytest.raises(RecipeError, match=rf"training\.{name}: must be a number, not true or false .*, got True"):
            check_training({name: True})


def test_keys_that_are_true_or_false_take_these(read):
    assert read("student: {padding_free: yes}").student.padding_free
    assert not read("cache: {generate_missing: off}").cache.generate_missing


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-3", -3),
        ("1_000", 1000),
        ("0x40", 64),
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("0100", "0100"),
        ("1:30", "1:30"),
        ("2026-11-26", "2026-11-26"),
        ("2026-02-30", "2026-02-30"),
        ("2026-11-26 10:00:00", "2026-11-26 10:00:00"),
        ("1.5.2", "1.5.2"),
        (".", "."),
        ("yes", True),
        ("~", None),
    ],
)
def test_plain_values(text, value):
    found = read_yaml(text)
    assert (found, type(found)) == (value, type(value))


def test_numbers_in_any_writing(read):
    assert read("cache: {top_k: 0100}").cache.top_k == 100
    assert read("cache: {top_k: 64.0}").cache.top_k == 64
    assert read("loss: {alpha: '0.5'}").loss.alpha == 0.5
    for text in ("cache: {top_k: 1:04}", "cache: {top_k: 64.5}", "cache: {top_k: .inf}", "loss: {alpha: .nan}"):
        with pytest.raises(RecipeError, match=r"input should be a"):
            read(text)


def test_dates_are_text(read):
    assert read("training: {run_name: 2026-02-30}").training == {"run_name": "2026-02-30"}
    assert read("{}", "training.run_name=2026-11-26").training == {"run_name": "2026-11-26"}
    assert read("{}", "teacher.revision=2026-13-01").teacher.revision == "2026-13-01"


def test_merged_mappings(read):
    recipe = read("teacher: &t {revision: a, max_pixels: 5}\nstudent: {<<: *t, revision: b}")
    assert (recipe.student.revision, recipe.student.max_pixels) == ("b", 5)
    both = read("loss: &l {alpha: 0.1}\ncache: {<<: [{top_k: 8}, {top_k: 9, path: c}]}")
    assert (both.cache.top_k, both.cache.path) == (8, "c")
    with pytest.raises(RecipeError, match=r"key 'revision' is given twice"):
        read("teacher: &t {revision: a}\nstudent: {<<: *t, revision: b, revision: c}")
    with pytest.raises(RecipeError, match=r"student\.quantization: no such key"):
        read("teacher: &t {quantization: none}\nstudent: {<<: *t}")


def test_one_list_may_be_named_twice(read):
    recipe = read("data: {train: &files [a.jsonl, b.jsonl], validation: *files}")
    assert recipe.data.train == recipe.data.validation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "an alias stands inside of what it names"),
        ("data: &d {train: *d}", "an alias stands inside of what it names"),
        ("a: &a {b: {c: [1, *a]}}", "an alias stands inside of what it names"),
        ("student: {<<: 3}", "expected a mapping or list of mappings for merging"),
        ("training: {run_name: !!timestamp 2026-02-30}", "a value does not fit its tag"),
        ("training: {run_name: !!timestamp abc}", "a value does not fit its tag"),
        ("training: {seed: !!int ''}", "a value does not fit its tag"),
        ("[" * 5000, "nested too deeply"),
        ("directory: /data/x", "directory: no such key; known keys: cache, data, loss, student, teacher, training"),
    ],
)
def test_what_cannot_be_read_is_one_line(read, text, message):
    with pytest.raises(RecipeError) as error:
        read(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    for override in ("data.train=&d [*d]", "training.run_name=!!timestamp 2026-02-30", "data.train=" + "[" * 5000):
        with pytest.raises(RecipeError, match=r"^--set .* is not a YAML value$"):
            read("{}", override)


def test_the_directory_is_no_key_of_an_override(read):
    with pytest.raises(RecipeError, match=r"directory: no such key"):
        read("{}", "directory.x=3")


PLACES = ["cache.path", "cache.scratch", "data.root", "data.image_root", "teacher.model", "student.model"]


@pytest.mark.parametrize("key", [*PLACES, "training.output_dir"])
def test_a_place_is_not_empty(read, key):
    for value in ("''", "' '"):
        with pytest.raises(RecipeError, match=rf"{key}: must name a place, as text; '\.' is .*, got '"):
            read("{}", f"{key}={value}")
    if key not in ("cache.scratch", "data.image_root"):  # which may be null
        for value in ("", "null", "false"):
            with pytest.raises(RecipeError, match=rf"{key}: .*, got (None|False)$"):
                read("{}", f"{key}={value}")


def test_the_recipe_s_own_directory_can_be_named(read, tmp_path):
    recipe = read("data: {root: .}\ntraining: {output_dir: .}")
    assert recipe.data_root == recipe.output_dir == tmp_path
    with pytest.raises(RecipeError, match=r"training\.output_dir: must name a place, as text; .*, got 12$"):
        read("training: {output_dir: 12}")
    with pytest.raises(RecipeError, match=r"data\.train: hub: must name a place"):
        read("data: {train: {hub: ''}}")
