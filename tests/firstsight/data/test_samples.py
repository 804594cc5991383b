"""Samples: what a row may look like, its key, and one clear line for each mistake."""

import json

import pytest
from PIL import Image

from firstsight.data.samples import check_files, load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError


def row(**changes):
    base = {
        "id": "a",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
        ],
        "images": ["one.png"],
        "category": "object_recognition",
        "environment": "kitchen",
    }
    return {**base, **changes}


@pytest.fixture
def load(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "two.png")

    def load(*rows):
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
        return load_samples(path, tmp_path)

    return load


def test_ids_are_names_made_where_there_are_none_and_numbered_where_they_are_repeated(load):
    first, second, third, fourth, fifth = load(row(id=None), row(), row(id="a#2"), row(), row(id=7))
    assert [each.id for each in (first, second, third, fourth, fifth)] == ["train.jsonl:1", "a", "a#2", "a#3", "7"]
    assert first.key == second.key == fifth.key


def test_row(load):
    (sample,) = load(row())
    assert (sample.id, sample.answer, sample.question) == ("a", "A cup.", "What is this?")
    assert [image.size for image in sample.open_images()] == [(40, 30)] == sample.image_sizes()
    assert sample.place == "train.jsonl:1"


def test_string_content_gets_the_images_in_front_as_in_trl(load):
    plain = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A cup."}]
    same, other = load(row(), row(id="b", messages=plain))
    assert same.prompt == other.prompt
    assert same.key == other.key


def test_no_answer_and_blank_lines(load):
    (sample,) = load("", row(messages=row()["messages"][:1]), "")
    assert sample.answer is None


def test_frames_with_times(load):
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Then?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Moved."}]
    frames = {**row(messages=messages), "frames": ["one.png", "two.png"]}
    del frames["images"]
    first, second = load({**frames, "times": [0, 1.5]}, {**frames, "id": "b", "times": [0, 2.5]})
    assert first.times == (0.0, 1.5)
    assert first.key != second.key


def test_names_of_groups_are_text(load):
    first, second = load(row(category=3, environment=None), row(id="b", category="3", environment=1.5))
    assert (first.category, first.environment) == ("3", None)
    assert (second.category, second.environment) == ("3", "1.5")


def test_key_follows_content_not_place(load, tmp_path):
    before = load(row())[0].key
    (tmp_path / "moved").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "moved" / "x.png")
    moved, edited = load(
        row(id="other", images=["moved/x.png"], category="counting"),
        row(
            id="b",
            images=["moved/x.png"],
            messages=[*row()["messages"][:1], {"role": "assistant", "content": "A mug."}],
        ),
    )
    assert moved.key == before
    assert edited.key != before
    Image.new("RGB", (40, 30), "green").save(tmp_path / "moved" / "x.png")
    assert load(row(images=["moved/x.png"]))[0].key != before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"train\.jsonl:2: not a JSON object"),
        ("[1]", r"train\.jsonl:2: expected a JSON object, got list"),
        (row(id=["a"]), r"train\.jsonl:2: key 'id' must be a string, got \['a'\]"),
        (row(id="\ud800"), r"train\.jsonl:2: the id has half a surrogate pair \(\\ud800\) at character 0"),
        (row(category="\udfff"), r"the category has half a surrogate pair"),
        (
            row(messages=[{"role": "user", "content": "a\0b"}], images=[]),
            r"a message has a NUL character at character 1",
        ),
        (row(id="b", images=["three.png"]), r"train\.jsonl:2: image .*three\.png not found"),
        (row(id="b", images=["three\n.png"]), r"image '.*three\\n\.png' not found"),
        (
            row(id="b", images=["iVBORw0KGgo" * 30]),
            r"train\.jsonl:2: image 'iVBORw.*'\.\.\. has 330 characters, which is not a path",
        ),
        (
            row(id="b", images=["iVBORw0/Ggo" * 900]),
            r"has 9,900 characters, which is not a path; write base64 as a URL",
        ),
        (row(id="b", images=["../" + "x/" * 900]), r"image '\.\./x/x.* is outside data\.root"),
        (row(id="b", images=["../one.png"]), r"train\.jsonl:2: image '\.\./one\.png' is outside data\.root"),
        (row(id="b", images=["/etc/hostname"]), r"is outside data\.root"),
        (row(id="b", images=[]), r"have places for 1 image, but the row lists 0"),
        (row(id="b", images="one.png"), r"'images' must be a list"),
        (row(id="b", messages=[]), r"'messages' must be a list"),
        (
            row(id="b", messages=[{"role": "robot", "content": "x"}]),
            r"role must be one of system, user, assistant, got 'robot'",
        ),
        (row(id="b", messages=row()["messages"][1:], images=[]), r"no user message"),
        (row(id="b", messages=[*row()["messages"][:1], {"role": "assistant", "content": " "}]), r"the answer is empty"),
        (row(id="b", frames=["one.png"]), r"'images' and 'frames' exclude each other"),
        (row(id="b", times=[1, 2]), r"'times' must list one number"),
    ],
)
def test_each_mistake_is_one_line(load, bad, message):
    with pytest.raises(DataError, match=message) as error:
        load(row(), bad)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"data file .*none\.jsonl not found"):
        check_files([DataSource(files=(tmp_path / "none.jsonl",), root=tmp_path)])


def test_hostile_images(load, tmp_path):
    (tmp_path / "one.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"one\.png cannot be decoded"):
        load(row())[0].open_images()
    Image.new("1", (9_000, 9_000)).save(tmp_path / "one.png")
    with pytest.raises(DataError, match=r"9,000 x 9,000 pixels, more than 64,000,000"):
        load(row())[0].open_images()
    whole = tmp_path / "two.png"
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(DataError, match=r"two\.png cannot be decoded"):
        load(row(images=["two.png"]))[0].open_images()


def test_options_of_a_multiple_choice_are_read_and_leave_the_key_as_it_is(load):
    (without,) = load(row())
    (listed,) = load(row(options=["a cup", "a key"]))
    (lettered,) = load(row(options={"B": "a key", "A": "a cup"}))
    assert without.options == ()
    assert listed.options == lettered.options == ("a cup", "a key")
    assert without.key == listed.key == lettered.key


@pytest.mark.parametrize("options", ["a cup", ["a cup"], ["a cup", 3], ["a cup", " "], 5])
def test_options_that_are_none_are_refused(load, options):
    with pytest.raises(DataError, match=r"train\.jsonl:1: 'options' must list"):
        load(row(options=options))


TEXTS = [f"o{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({str(number): text for number, text in enumerate(TEXTS)}, TEXTS),
        ({str(number): text for number, text in reversed(list(enumerate(TEXTS, start=1)))}, TEXTS),
        (dict(zip("lkjihgfedcba", reversed(TEXTS), strict=True)), TEXTS),
        ({"A": "x", "B": "y", "C": None, "D": None}, ["x", "y"]),
        ({"2": None, "0": "x", "1": "y"}, ["x", "y"]),
    ],
)
def test_each_option_of_a_mapping_keeps_its_letter(load, options, texts):
    (sample,) = load(row(options=options))
    assert sample.options == tuple(texts)


@pytest.mark.parametrize(
    "options",
    [
        {"A": "a mug", "B": None, "C": "a bottle", "D": "a lamp"},
        {"A": None, "B": "x", "C": "y"},
        {"B": "x", "C": "y"},
        {"a": "x", "B": "y"},
        {"A": "x", "a": "y"},
        {"1": "x", "3": "y"},
        {"2": "x", "3": "y"},
        {"01": "x", "02": "y"},
        {"0": "x", "1": None, "2": "y"},
        {"-1": "x", "0": "y"},
        {"A": "x", "1": "y"},
        {"option1": "x", "option2": "y"},
        {str(number): "x" for number in range(27)},
        {"\u0661": "x", "\u0662": "y"},
    ],
)
def test_options_whose_letters_are_open_are_refused(load, options):
    with pytest.raises(DataError, match=r"train\.jsonl:1: the keys of 'options' must be A, B, C") as error:
        load(row(options=options))
    assert "\n" not in str(error.value)
