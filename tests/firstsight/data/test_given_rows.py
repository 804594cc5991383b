"""Rows that Python gives in place of a file: the samples, the keys and the messages of a file's rows, and nothing else taken."""

import base64
import copy
import datetime
import io
import json
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_packages import optional_package
from PIL import Image

from firstsight.data.check import check_data
from firstsight.data.samples import SampleFiles, as_source, load_samples
from firstsight.errors import DataError, FirstSightError, RecipeError
from firstsight.recipe import load_recipe
from phase1_teacher.planning.sample_index import SampleIndex
from phase2_student.training.sweep import grid_runs

ROWS = [
    {"id": "a", "question": "What is this?", "answer": "A cup.", "image": "a.png"},
    {
        "messages": [{"role": "user", "content": "And this?"}, {"role": "assistant", "content": "A lamp."}],
        "images": ["b.png"],
    },
    {"id": "c", "prompt": "Is it red?", "completion": "Yes."},
]


@pytest.fixture
def place(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "recipe.yaml").write_text("data: {root: .}\n")
    return tmp_path


def test_a_list_gives_the_samples_of_a_file_and_stays_as_it_is(place):
    rows = copy.deepcopy(ROWS)
    given, read = load_samples(rows, place), load_samples(str(place / "rows.jsonl"))
    assert [sample.key for sample in given] == [sample.key for sample in read]
    assert [sample.id for sample in given] == ["a", "rows: row 2", "c"]
    assert rows == ROWS


@pytest.mark.parametrize(
    "rows",
    [
        tuple(ROWS),
        [OrderedDict(row) for row in ROWS],
        [{**ROWS[0], "image": Path("a.png")}, {**ROWS[1], "images": ("b.png",)}, ROWS[2]],
    ],
    ids=["tuple", "mappings", "paths and tuples"],
)
def test_what_python_writes_otherwise_is_the_same_row(place, rows):
    assert [sample.key for sample in load_samples(rows, place)] == [sample.key for sample in load_samples(ROWS, place)]


def test_bytes_of_a_picture_have_the_key_of_its_file(place):
    data = (place / "a.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for image in (data, {"bytes": data, "path": None}, url):
        assert load_samples([{**ROWS[0], "image": image}])[0].key == load_samples(ROWS, place)[0].key


@pytest.mark.parametrize(
    "fault",
    [
        {"question": "?", "answer": "!", "colour": "red"},
        {"question": "?", "answer": "!", "image": "../outside.png"},
        {"question": "?", "answer": "!", "image": "missing.png"},
        {"question": "?", "answer": " "},
        {"question": 3, "answer": "!"},
        ["no", "row"],
        {},
    ],
)
def test_a_fault_has_the_words_that_it_has_in_a_file(place, fault):
    (place / "faulty.jsonl").write_text(json.dumps(ROWS[2]) + "\n" + json.dumps(fault) + "\n")
    with pytest.raises(DataError) as of_file:
        load_samples(place / "faulty.jsonl")
    with pytest.raises(DataError) as of_list:
        load_samples([ROWS[2], fault], place)
    assert str(of_list.value) == str(of_file.value).replace("faulty.jsonl:2", "rows: row 2")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("rows.jsonl", "got str; name a file"),
        (b"rows", "got bytes"),
        (ROWS[0], "got dict; .* a single row goes into a list"),
        ((row for row in ROWS), "got generator; rows are read more than once"),
        (iter(ROWS), "got list_iterator; rows are read more than once"),
        ({1, 2}, "got set"),
        (7, "got int"),
        (SimpleNamespace(), "from_pandas"),
    ],
)
def test_other_kinds_of_rows_are_refused_with_what_to_do(place, rows, words):
    with pytest.raises(
        DataError, match=f"^train: expected a list of rows .* or a datasets.Dataset, {words if 'got' in words else ''}"
    ):
        load_recipe(place / "recipe.yaml", train=rows)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float32(1), r"numpy\.float32.*tolist"),
        (np.str_("text"), r"numpy\.str_.*tolist"),
        (np.zeros(3), r"numpy\.ndarray.*tolist"),
        (Image.new("RGB", (2, 2)), r"PIL\.Image\.Image.*from_list"),
        (datetime.date(2026, 11, 26), r"datetime\.date"),
        (Fraction(1, 2), "Fraction"),
        ({"x"}, r"builtins\.set"),
        (object(), r"builtins\.object"),
        ({3: "x"}, "has the key 3; keys are texts"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_value_that_no_file_holds_is_refused_by_name(place, value, words, deep):
    row = {"messages": [{"role": "user", "content": [value]}]} if deep else {**ROWS[0], "category": value}
    with pytest.raises(DataError, match=rf"^rows: row 2: '\w+' .*{words}"):
        load_samples([ROWS[2], row], place)


def test_a_row_that_holds_itself_is_refused(place):
    row = {"question": "?", "answer": "!"}
    row["history"] = [row]
    with pytest.raises(DataError, match="rows: row 1: nested too deeply"):
        load_samples([row], place)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.dates(),
        st.just({1}),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(
            st.one_of(st.sampled_from(["role", "content", "type", "text", "bytes"]), st.integers()), inner, max_size=3
        ),
    ),
    max_leaves=8,
)
COLUMNS = [
    "id",
    "messages",
    "question",
    "answer",
    "images",
    "image",
    "times",
    "options",
    "conversations",
    "prompt",
    "category",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(VALUES, st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4)), min_size=1, max_size=3)
)
def test_any_rows_are_samples_or_one_line(rows):
    faults = []
    for _ in SampleFiles(as_source(rows, Path("/nowhere"))).located(faults.append):
        pass
    for fault in faults:
        assert str(fault).startswith("rows: ")
        assert "\n" not in str(fault)


def test_an_empty_list_is_refused(place):
    with pytest.raises(DataError, match=r"^rows: holds no rows"):
        load_samples([], place)


def test_a_recipe_takes_rows_and_names_them_where_it_is_written(place):
    recipe = load_recipe(str(place / "recipe.yaml"), train=ROWS, validation=ROWS[:1])
    train, validation = (load_samples(source) for source in recipe.sources())
    assert ([sample.place for sample in train][1], len(validation)) == ("train: row 2", 1)
    assert check_data(recipe.sources()).summary.rows == {"train": 3, "validation": 1}
    (place / "written.yaml").write_text(yaml.safe_dump(recipe.dump()))
    again = load_recipe(place / "written.yaml")
    with pytest.raises(
        DataError,
        match=r"^train: 3 rows that Python gave are in no file; give them again, load_recipe\(\.\.\., train=rows\)",
    ):
        load_samples(again.source("train"))
    assert len(load_samples(load_recipe(place / "written.yaml", train=ROWS).source("train"))) == 3


def test_a_share_of_given_rows_is_for_validation(place):
    rows = [{"question": f"What is {n}?", "answer": "A number."} for n in range(60)]
    recipe = load_recipe(place / "recipe.yaml", ["data.validation=30%"], train=rows)
    train, validation = (load_samples(source) for source in recipe.sources())
    assert len(train) + len(validation) == 60
    assert validation


def test_rows_and_an_override_exclude_each_other(place):
    with pytest.raises(RecipeError, match=r"^data\.train: is overridden, and rows are given for it as well"):
        load_recipe(place / "recipe.yaml", ["data.train=other.jsonl"], train=ROWS)
    (place / "wrong.yaml").write_text("data: 3\n")
    with pytest.raises(FirstSightError, match="data"):
        load_recipe(place / "wrong.yaml", train=ROWS)


def test_the_runs_of_a_grid_share_their_rows(place):
    one, other = grid_runs(place / "recipe.yaml", [], ["temperature=1,2"], train=ROWS, validation=ROWS)
    assert one.recipe.data == other.recipe.data
    assert (
        one.recipe.data
        != grid_runs(place / "recipe.yaml", [], ["alpha=1"], train=ROWS[1:], validation=ROWS)[0].recipe.data
    )


def test_a_dump_finds_a_row_again_and_notices_that_it_was_changed(place):
    rows = copy.deepcopy(ROWS)
    recipe = load_recipe(place / "recipe.yaml", ["data.validation=none"], train=rows)
    index = SampleIndex.build(recipe.sources(), lambda _: 1)
    keys = [sample.key for sample in load_samples(rows, place)]
    assert [index[key].answer for key in keys] == ["A cup.", "A lamp.", "Yes."]
    rows[0]["answer"] = "A mug."
    with pytest.raises(DataError, match="train: row 1: the row or its images changed during the dump"):
        _ = index[keys[0]]


class TestDatasets:
    """`datasets.Dataset` and what looks like one."""

    @pytest.fixture
    def datasets(self):
        return optional_package("datasets")

    @pytest.fixture
    def dataset(self, datasets):
        pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green", "white")]
        rows = [
            {"question": f"What {n}?", "answer": "A cup.", "image": picture, "category": n % 2}
            for n, picture in enumerate(pictures)
        ]
        made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        return made.cast_column("category", datasets.ClassLabel(names=["objects", "places"]))

    def test_its_rows_are_read_as_they_are_stored(self, dataset):
        samples = load_samples(dataset)
        assert [sample.category for sample in samples] == ["objects", "places"] * 2
        assert samples[0].open_images()[0].getpixel((0, 0)) == (255, 0, 0)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        listed = {"question": "What 0?", "answer": "A cup.", "image": buffer.getvalue(), "category": "objects"}
        assert samples[0].key == load_samples([listed])[0].key

    def test_chosen_rows_and_columns_are_those_that_are_read(self, dataset):
        assert [sample.question for sample in load_samples(dataset.select([3, 1]))] == ["What 3?", "What 1?"]
        narrow = dataset.with_format("numpy", columns=["question", "answer"])
        assert [sample.category for sample in load_samples(narrow)] == [None] * 4

    def test_a_dump_finds_its_rows_again(self, dataset, place):
        recipe = load_recipe(place / "recipe.yaml", ["data.validation=none"], train=dataset.shuffle(seed=1))
        index = SampleIndex.build(recipe.sources(), lambda _: 1)
        for sample in load_samples(dataset):
            assert index[sample.key].question == sample.question

    def test_a_transform_is_not_passed_over(self, dataset):
        with pytest.raises(DataError, match=r"^rows: has a transform \(set_transform\)"):
            load_samples(dataset.with_transform(lambda batch: batch))

    def test_what_is_no_dataset_is_refused_with_what_to_do(self, datasets, dataset):
        with pytest.raises(DataError, match="got DatasetDict; give one of its splits: train, test"):
            load_samples(datasets.DatasetDict(train=dataset, test=dataset))
        with pytest.raises(DataError, match="got IterableDataset; give a Dataset, whose rows can be read again"):
            load_samples(dataset.to_iterable_dataset())

    def test_the_fault_of_a_row_is_named(self, datasets):
        with pytest.raises(DataError, match=r"^rows: row 2: the row has the unknown key 'colour'"):
            load_samples(datasets.Dataset.from_list([{**ROWS[2], "colour": None}, {**ROWS[2], "colour": "red"}]))
