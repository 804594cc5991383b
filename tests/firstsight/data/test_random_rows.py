"""A row that is accepted has every word and every picture of it, once and in order; anything else is refused in one line."""

import base64
import io

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firstsight.data.images import InlineImage
from firstsight.data.row import parse_row
from firstsight.data.source import FORMATS, DataSource
from firstsight.errors import DataError


def picture(number):
    buffer = io.BytesIO()
    Image.new("L", (1, 1), number).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(n) for n in range(4)]
URLS = ["data:image/png;base64," + base64.b64encode(data).decode() for data in PICTURES]
WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>|"), min_size=1, max_size=6
).filter(str.strip)
ITEMS = st.lists(st.one_of(WORDS, st.integers(0, 3)), min_size=1, max_size=5)  # a text, or the number of a picture


def source(form=None):
    from pathlib import Path

    return DataSource(files=(Path("t.jsonl"),), root=Path("/nowhere"), format=form)


def content(sample):
    """Texts (neighbours joined) and pictures of a sample's messages, by role."""
    pictures = iter(sample.images)
    made = []
    for message in sample.prompt:
        for part in message["content"]:
            if part["type"] == "image":
                made.append((message["role"], PICTURES.index(next(pictures).data)))
            elif made and made[-1][0] == message["role"] and isinstance(made[-1][1], str):
                made[-1] = (message["role"], made[-1][1] + part["text"])
            else:
                made.append((message["role"], part["text"]))
    assert next(pictures, None) is None
    return made, sample.answer


def joined(turns):
    made = []
    for role, items in turns:
        for item in items:
            if isinstance(item, str) and made and made[-1][0] == role and isinstance(made[-1][1], str):
                made[-1] = (role, made[-1][1] + item)
            else:
                made.append((role, item))
    return made


def with_parts(items, own):
    return [
        {"type": "text", "text": item}
        if isinstance(item, str)
        else {"type": "image", **({"image": URLS[item]} if own else {})}
        for item in items
    ]


def with_marks(items):
    return "".join(item if isinstance(item, str) else "<image>" for item in items)


@given(
    st.lists(ITEMS, min_size=1, max_size=3), WORDS, st.sampled_from(["own", "listed", "marks", "sharegpt", "prompt"])
)
@settings(max_examples=200, deadline=None)
def test_every_word_and_picture_once_and_in_order(questions, answer, way):
    turns = []
    for number, items in enumerate(questions):
        turns += [("assistant", ["so"])] if number else []
        turns.append(("user", items))
    listed = [URLS[item] for _, items in turns for item in items if isinstance(item, int)]
    messages = [
        {"role": role, "content": with_marks(items) if way in ("marks", "prompt") else with_parts(items, way == "own")}
        for role, items in turns
    ]
    reply = {"role": "assistant", "content": answer}
    row = {"messages": [*messages, reply], "images": listed}
    if way == "own":
        del row["images"]
    elif way == "sharegpt":
        names = {"user": "human", "assistant": "gpt"}
        said = [{"from": names[role], "value": with_marks(items)} for role, items in turns]
        row = {"conversations": [*said, {"from": "gpt", "value": answer}], "images": listed}
    elif way == "prompt":
        row = {"prompt": messages, "completion": [reply], "images": listed}
    assert content(parse_row(row, "t:1", source())) == (joined(turns), answer)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 5),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(["user", "image", "<image>", URLS[0]]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "from", "value", "bytes", "path"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)
KEYS = ["id", "messages", "images", "image", "frames", "times", "conversations", "prompt", "completion", "question", "answer", "options",
        "query", "response", "history", "instruction", "input", "output", "system", "category", "videos", "extra"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5), st.sampled_from([None, *FORMATS]))
@settings(max_examples=500, deadline=None)
def test_anything_else_is_refused_in_one_line(row, form):
    refusal = None
    try:
        sample = parse_row(row, "t:1", source(form))
    except DataError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("t:1")
        assert len(refusal) < 900
        assert "\n" not in refusal
        return
    assert row.get("extra") is None
    places = sum(part["type"] == "image" for message in sample.prompt for part in message["content"])
    assert places == len(sample.images)
    assert all(isinstance(image, InlineImage) for image in sample.images)
    assert len(sample.key) == 64
