"""LLaMA-Factory's dataset_info.json: file, form, columns and tags as an entry states them; anything else refused by name."""

import json

import pytest
from PIL import Image

from firstsight.data.entries import HubSplit, ListedDataset
from firstsight.data.listed import sources_of
from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

SHARED = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")

    def read(entry, *rows, name="demo", **settings):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        info = {"other": {"file_name": "none.json"}, "demo": {"file_name": "rows.json", **entry}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        listed = ListedDataset(dataset_info=tmp_path / "dataset_info.json", name=name)
        return load_samples(DataSource(files=(listed,), root=tmp_path, **settings))

    return read


def said(sample):
    messages = [
        *sample.prompt,
        *([{"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}] if sample.answer else []),
    ]
    return [(m["role"], "".join(part.get("text", "[image]") for part in m["content"])) for m in messages]


def test_columns_and_tags_are_those_of_the_entry(read):
    row = {
        "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cup."}],
        "images": ["a.png"],
    }
    (sample,) = read(SHARED, row)
    assert said(sample) == [("user", "[image]What?"), ("assistant", "A cup.")]
    assert sample.place == "rows.json: row 1"
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "rules", "images": "pictures"},
        "tags": {
            "role_tag": "who",
            "content_tag": "says",
            "user_tag": "student",
            "assistant_tag": "tutor",
            "system_tag": "rule",
        },
    }
    talk = [{"who": "student", "says": "<image>Hi"}, {"who": "tutor", "says": "Yes?"}, {"who": "student", "says": "What?"},
            {"who": "tutor", "says": "A cup."}]  # fmt: skip
    (sample,) = read(entry, {"talk": talk, "rules": "Be brief.", "pictures": "a.png"})
    assert said(sample) == [
        ("system", "Be brief."), ("user", "[image]Hi"), ("assistant", "Yes?"), ("user", "What?"), ("assistant", "A cup."),
    ]  # fmt: skip
    (sample,) = read(entry, {"talk": [{"who": "rule", "says": "Be brief."}, *talk[2:]]})
    assert said(sample)[0] == ("system", "Be brief.")


def test_what_an_entry_does_not_state_has_its_default(read):
    (sample,) = read({}, {"instruction": "Answer.", "input": "What?", "output": "A cup."})
    assert said(sample) == [("user", "Answer.\nWhat?"), ("assistant", "A cup.")]
    (sample,) = read(
        {"columns": {"prompt": "q", "response": "a", "history": "before"}},
        {"q": "What?", "a": "A cup.", "before": [["Hi", "Yes?"]]},
    )
    assert said(sample) == [("user", "Hi"), ("assistant", "Yes?"), ("user", "What?"), ("assistant", "A cup.")]
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cup."}]
    (sample,) = read({"formatting": "sharegpt", "ranking": False}, {"conversations": turns})
    assert said(sample) == [("user", "What?"), ("assistant", "A cup.")]


def test_files_lie_beside_it_and_several_make_one_dataset(tmp_path):
    (tmp_path / "in" / "part").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "in" / "part" / f"{name}.jsonl").write_text(json.dumps({"instruction": name, "output": "x"}))
    (tmp_path / "in" / "dataset_info.json").write_text('\ufeff{"demo": {"file_name": "part"}}', encoding="utf-8")
    listed = ListedDataset(dataset_info=tmp_path / "in" / "dataset_info.json", name="demo")
    samples = load_samples(DataSource(files=(listed,), root=tmp_path))
    assert [sample.question for sample in samples] == ["a", "b"]
    assert [sample.id for sample in samples] == ["a.jsonl:1", "b.jsonl:1"]


def test_an_entry_of_the_hub(tmp_path):
    path = tmp_path / "dataset_info.json"
    info = {"hf_hub_url": "org/name", "ms_hub_url": "Org/Name", "subset": "en", "split": "train[:1%]"}
    path.write_text(json.dumps({"demo": info}))
    ((file, source),) = sources_of(DataSource(files=(), root=tmp_path), ListedDataset(dataset_info=path, name="demo"))
    assert file == HubSplit(hub="org/name", subset="en", split="train[:1%]")
    assert source.columns == {"instruction": "instruction", "input": "input", "output": "output"}


GOOD = {"instruction": "What?", "output": "A cup."}
REFUSED = [
    ({"ranking": True}, r"dataset_info\.json, 'demo': has the key 'ranking': training uses one answer"),
    ({"num_samples": 5}, r"'num_samples': rows are not sampled at random; take a slice"),
    ({"folder": "x"}, r"'folder'"),
    ({"script_url": "x"}, r"scripts are not run"),
    ({"colums": {}}, r"has the unknown key 'colums'; did you mean 'columns'\?"),
    ({"formatting": "chatml"}, r"'formatting' must be one of alpaca, sharegpt, openai, got 'chatml'"),
    ({"columns": {"prompt": "instruction", "chosen": "output"}}, r"the column 'chosen': training uses one answer"),
    ({"columns": {"prompt": "instruction", "videos": "v"}}, r"the column 'videos': video files are not read"),
    ({"columns": {"prompt": "instruction", "tools": "t"}}, r"the column 'tools': tools are not supported"),
    ({"columns": {"promt": "instruction"}}, r"has no column 'promt'; did you mean 'prompt'"),
    ({"columns": {"messages": "m"}}, r"a dataset of 'formatting': 'alpaca' has no column 'messages'"),
    ({"columns": {"response": "output"}}, r"'columns' must name 'prompt', the column of the questions"),
    ({"columns": ["prompt"]}, r"'columns' must map names to names"),
    ({"tags": {"role_tag": "from"}}, r"'tags' are for turns"),
    ({**SHARED, "tags": {"roletag": "from"}}, r"'tags' has the unknown key 'roletag'; did you mean 'role_tag'\?"),
    ({"split": "test"}, r"'split' is for a hub dataset"),
    ({"subset": "en"}, r"'subset' is for a hub dataset"),
    ({"hf_hub_url": "a/b"}, r"expected 'hf_hub_url' or 'file_name', got both"),
    ({"file_name": None}, r"expected 'file_name' or 'hf_hub_url', got neither"),
    ({"file_name": 5}, r"'file_name' must be a string, got 5"),
    ({"file_name": "no.json"}, r"no\.json not found"),
    ({"columns": {"prompt": "instruction"}}, r"row 1: the column 'output' is not in the columns of the dataset_info\.json; map it"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), REFUSED)
def test_what_is_not_done_is_refused_by_name(read, entry, message):
    with pytest.raises(DataError, match=message) as error:
        read(entry, GOOD)
    assert "\n" not in str(error.value)


def test_turns_of_other_keys_and_roles_are_refused(read):
    for turn, message in (
        ({"role": "tool", "content": "x"}, r"a turn's 'role' must be one of user, assistant, system, got 'tool'"),
        ({"from": "user", "content": "x"}, r"a turn has the unknown key 'from'"),
        ("x", r"a turn must have 'role' and 'content', got 'x'"),
    ):
        with pytest.raises(DataError, match=message):
            read(SHARED, {"messages": [turn]})


def test_names_and_settings_that_do_not_go_with_it(read, tmp_path):
    with pytest.raises(DataError, match=r"has no dataset 'demmo'; did you mean 'demo'\?"):
        read({}, GOOD, name="demmo")
    with pytest.raises(DataError, match=r"data\.format is also set; remove it"):
        read({}, GOOD, format="query")
    with pytest.raises(DataError, match=r"data\.columns is also set; remove it"):
        read({}, GOOD, columns={"question": "x"})
    (sample,) = read({}, {**GOOD, "source": "web"}, ignore_columns=frozenset({"source"}))
    assert sample.answer == "A cup."
    path = tmp_path / "dataset_info.json"
    listed = DataSource(files=(ListedDataset(dataset_info=path, name="demo"),), root=tmp_path)
    for text, message in (
        ("[", r"dataset_info\.json: not a JSON object"),
        ("[1]", r"expected names of datasets"),
        ('{"demo": 5}', r"expected names of datasets"),
        ("[" * 100_000, r"nested too deeply"),
        ('{"demo": NaN}', r"NaN is not JSON"),
        ('{"demo": {},}', r"not a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            load_samples(listed)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=r"dataset_info\.json not found"):
        load_samples(listed)
