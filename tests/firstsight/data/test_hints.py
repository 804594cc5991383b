"""What messages about rows give to paste into a recipe."""

import re

import pytest
import yaml

from firstsight.data.row import parse_row
from firstsight.data.source import DataSource
from firstsight.errors import DataError

NAMES = [
    "split",
    "Unnamed: 0",
    "",
    "no",
    "null",
    "1",
    "1.5",
    "a, b",
    "[a]",
    "{",
    "#1",
    " x",
    "it's",
    '"',
    "Größe",
    "a\nb",
    "é\u2028",
    "- a",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_message_tells_to_paste_is_read_back_as_that_name(tmp_path, name):
    def read(row, **settings):
        return parse_row(row, "r:1", DataSource(files=(), root=tmp_path, **settings))

    row = {"question": "What?", name: 1}
    with pytest.raises(DataError, match=r"data\.ignore_columns: ") as error:
        read(row)
    _, _, hint = str(error.value).partition("data.ignore_columns: ")
    assert len(hint.splitlines()) == 1
    assert yaml.safe_load(hint) == [name]
    assert read(row, ignore_columns=frozenset(yaml.safe_load(hint))).question == "What?"
    with pytest.raises(DataError, match=r"data\.columns, such as ") as error:
        read({name: "What?"})
    hint = re.search(r"such as (\{.*\})( \(the row's id.*)?$", str(error.value))[1]
    assert yaml.safe_load(hint) == {"question": name}
    with pytest.raises(DataError, match="is not in the columns of the dataset_info") as error:
        read({"instruction": "x", "history": [["a", "b"]]}, mapped_only=True, columns={"instruction": "instruction"})
    assert yaml.safe_load(str(error.value).partition("data.ignore_columns: ")[2]) == ["history"]
