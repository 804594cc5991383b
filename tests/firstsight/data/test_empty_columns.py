"""Columns that state nothing: null, empty texts and lists, NaN, a label that is none; and values that are false but stated."""

import json
import math

import pytest
from PIL import Image

from firstsight.data.forms.base import COMMON
from firstsight.data.forms.convert import FORMS
from firstsight.data.row import parse_row
from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cup."}]
ROWS = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cup."}]},
    "prompt_completion": {"prompt": "What?", "completion": "A cup."},
    "instruction": {"instruction": "What?", "output": "A cup."},
    "query": {"query": "What?", "response": "A cup."},
    "flat": {"question": "What?", "answer": "A cup."},
}
WITH_SYSTEM = [name for name in ROWS if name != "prompt_completion"]


@pytest.fixture
def read(tmp_path):
    def read(row, **settings):
        return parse_row(row, "r:1", DataSource(files=(), root=tmp_path, **settings))

    return read


@pytest.mark.parametrize("form", WITH_SYSTEM)
@pytest.mark.parametrize("system", ["", "  ", "\n\t", None, math.nan, []])
def test_a_system_column_without_words_is_none_in_every_form(read, form, system):
    assert read({**ROWS[form], "system": system}) == read(ROWS[form])


@pytest.mark.parametrize("form", WITH_SYSTEM)
def test_a_system_column_with_words_is_the_same_turn_in_every_form(read, form):
    sample = read({**ROWS[form], "system": " Be brief."})
    assert sample.messages[0] == {"role": "system", "content": [{"type": "text", "text": " Be brief."}]}
    assert sample.key == read({"messages": [{"role": "system", "content": " Be brief."}, *TURNS]}).key


@pytest.mark.parametrize("form", WITH_SYSTEM)
@pytest.mark.parametrize("system", [0, False, 5, {"a": 1}])
def test_a_system_column_of_another_type_is_refused(read, form, system):
    with pytest.raises(DataError, match=r"r:1: .* must be a string"):
        read({**ROWS[form], "system": system})


def test_an_empty_system_turn_stays_and_a_column_beside_it_only_if_it_has_words(read):
    turn = {"messages": [{"role": "system", "content": ""}, *TURNS]}
    assert read(turn).messages[0] == {"role": "system", "content": [{"type": "text", "text": ""}]}
    assert read({**turn, "system": ""}) == read(turn)
    with pytest.raises(DataError, match="exclude each other"):
        read({**turn, "system": "x"})


@pytest.mark.parametrize("form", ROWS)
def test_every_column_may_be_an_empty_text_as_in_a_table(read, form):
    known = COMMON.union(*(each.columns for each in FORMS if each.name == form))
    for column in known - set(ROWS[form]):
        for nothing in ("", None, math.nan):
            assert read({**ROWS[form], column: nothing}) == read(ROWS[form]), column


@pytest.mark.parametrize("form", ROWS)
def test_a_column_of_no_meaning_may_be_empty(read, form):
    for column in ("videos", "tools", "audios", "extra", "label"):
        for nothing in ([], {}, "", " ", None, math.nan):
            assert read({**ROWS[form], column: nothing}) == read(ROWS[form])
        for something in (0, False, [None], [""], "x", {"a": None}):
            with pytest.raises(DataError, match=f"key '{column}'"):
                read({**ROWS[form], column: something})


def test_columns_of_other_forms_may_be_empty(read):
    for form, row in ROWS.items():
        for other, columns in ROWS.items():
            if form != other:
                assert read({**row, **dict.fromkeys(columns, "")}) == read(row)


@pytest.mark.parametrize("value", [0, 5, False, [], ["a"], {}])
def test_an_input_that_is_no_text_is_refused(read, value):
    with pytest.raises(DataError, match=r"r:1: 'input' must be a string"):
        read({**ROWS["instruction"], "input": value})


@pytest.mark.parametrize(
    ("column", "value"),
    [("history", 0), ("history", {}), ("images", 0), ("images", {}), ("image", 0), ("options", 0), ("answers", 0),
     ("times", 0), ("id", False), ("id", []), ("category", []), ("environment", {}), ("answer", 0), ("answer", [])],
)  # fmt: skip
def test_a_value_that_is_false_is_not_taken_for_none(read, column, value):
    form = "query" if column == "history" else "flat"
    with pytest.raises(DataError, match=r"r:1: "):
        read({**ROWS[form], column: value})


def test_lists_without_entries(read):
    row = {**ROWS["flat"], "images": [], "times": [], "options": []}
    assert read(row) == read(ROWS["flat"])
    assert read({**ROWS["flat"], "options": {"A": None, "B": None}}) == read(ROWS["flat"])
    assert read({**ROWS["query"], "history": []}) == read(ROWS["query"])
    assert read({**ROWS["messages"], "messages": [{**turn, "tool_calls": []} for turn in TURNS]}) == read(
        ROWS["messages"]
    )


def test_an_empty_column_of_images_beside_the_other(read, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked = {**ROWS["flat"], "images": ["a.png"]}
    for nothing in ({"image": ""}, {"image": []}, {"frames": []}, {"image_path": ""}):
        assert read({**asked, **nothing}) == read(asked)
    with pytest.raises(DataError, match="exclude each other"):
        read({**asked, "image": "a.png"})


def test_nan_is_null_wherever_it_is(read):
    nan = math.nan
    row = {**ROWS["flat"], "id": nan, "category": nan, "environment": nan, "options": {"A": "x", "B": "y", "C": nan}}
    sample = read(row)
    assert (sample.id, sample.category, sample.environment, sample.options) == ("r:1", None, None, ("x", "y"))
    assert read({"question": "What?", "answer": nan}).answer is None
    assert read({"prompt": "What?", "completion": ""}).answer is None
    assert read({"question": "", "answer": "A cup."}).question == ""
    with pytest.raises(DataError, match=r"'question' must be a string|no columns|expected one of"):
        read({"question": nan, "answer": "A cup."})
    with pytest.raises(DataError, match="'answers' must list"):
        read({**ROWS["flat"], "answers": ["yes", nan]})


def test_rows_of_a_data_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "question": ["What?", "Who?"],
            "answer": ["A cup.", None],
            "category": ["objects", float("nan")],
            "environment": pandas.array([1, pandas.NA], dtype="Int64").astype(object),
            "id": [pandas.NaT, "x"],
        }
    )
    first, second = load_samples(table.to_dict("records"), tmp_path)
    assert (first.id, first.category, first.environment, first.answer) == ("rows: row 1", "objects", "1", "A cup.")
    assert (second.id, second.category, second.environment, second.answer) == ("x", None, None, None)


def test_parquet_with_nan_and_a_label_that_is_none(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"category": {"names": ["objects", "places"], "_type": "ClassLabel"}}
    table = pyarrow.table(
        {
            "question": ["a", "b", "c", "d"],
            "category": [1, -1, None, 0],
            "environment": [1.0, math.nan, None, 2.5],
        }
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "t.parquet")
    samples = load_samples(tmp_path / "t.parquet")
    assert [sample.category for sample in samples] == ["places", None, None, "objects"]
    assert [sample.environment for sample in samples] == ["1.0", None, None, "2.5"]


def test_a_dataset_info_s_rows_may_have_empty_columns_that_it_does_not_map(read):
    mapped = {
        "format": "instruction",
        "columns": {"instruction": "instruction", "output": "output"},
        "mapped_only": True,
    }
    row = ROWS["instruction"]
    assert read({**row, "system": "", "history": [], "images": [], "input": ""}, **mapped) == read(row)
    with pytest.raises(DataError, match="the column 'history' is not in the columns"):
        read({**row, "history": [["a", "b"]]}, **mapped)
