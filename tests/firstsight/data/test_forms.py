"""Every form of rows with the field names that people have: the prompt as it is rendered, the pictures in their order."""

import base64
import io
import json
import re

import pytest
import torch
from PIL import Image

from firstsight.data.samples import load_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError
from firstsight.pair import load_prompter
from firstsight.recipe import StudentSection

COLORS = {"a.png": "red", "b.png": "blue"}


def picture(color):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 28), color).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(color):
    return base64.b64encode(picture(color)).decode()


@pytest.fixture
def read(tmp_path):
    for name, color in COLORS.items():
        (tmp_path / name).write_bytes(picture(color))

    def read(*rows, **settings):
        path = tmp_path / "train.json"
        path.write_text(json.dumps(list(rows)))
        return load_samples(DataSource(files=(path,), root=tmp_path, **settings))

    return read


def shown(sample):
    """The prompt in one line: texts as they are, an image as its colour; then the answer."""
    images = iter(sample.open_images())
    names = {(255, 0, 0): "[red]", (0, 0, 255): "[blue]"}
    lines = []
    for message in sample.prompt:
        parts = [
            names[next(images).getpixel((0, 0))] if part == {"type": "image"} else part["text"]
            for part in message["content"]
        ]
        lines.append(f"{message['role']}: {''.join(parts)}")
    assert next(images, None) is None
    return f"{' | '.join(lines)} -> {sample.answer}"


USER = {"role": "user", "content": "What?"}
CUP = {"role": "assistant", "content": "A cup."}
TEXT = {"type": "text", "text": "What?"}
LIMIT = r"limits of an image are min_pixels and max_pixels of an image part"

FORMS = {
    "trl, contents as texts": ({"messages": [USER, CUP], "images": ["a.png"]}, "user: [red]What? -> A cup."),
    "trl, parts as arrow writes them": (
        {
            "messages": [{"role": "user", "content": [{"type": "image", "text": None}, TEXT]}, CUP],
            "images": [{"bytes": None, "path": "a.png"}],
        },
        "user: [red]What? -> A cup.",
    ),
    "trl, one image": ({"messages": [USER, CUP], "image": "b.png"}, "user: [blue]What? -> A cup."),
    "trl, prompt and completion as texts": (
        {"prompt": "What?", "completion": "A cup.", "images": ["a.png"]},
        "user: [red]What? -> A cup.",
    ),
    "trl, prompt and completion as messages": (
        {"prompt": [{"role": "system", "content": "Be brief."}, USER], "completion": [CUP], "image": "a.png"},
        "system: Be brief. | user: [red]What? -> A cup.",
    ),
    "qwen parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [TEXT, {"type": "image", "image": "b.png"}, {"type": "image", "image": "a.png"}],
                },
                CUP,
            ]
        },
        "user: What?[blue][red] -> A cup.",
    ),
    "openai parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + encoded("red")}},
                        TEXT,
                        {"type": "image_url", "image_url": "b.png"},
                    ],
                },
                CUP,
            ]
        },
        "user: [red]What?[blue] -> A cup.",
    ),
    "axolotl parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "path": "a.png"}, {"type": "image", "base64": encoded("blue")}, TEXT],
                },
                CUP,
            ]
        },
        "user: [red][blue]What? -> A cup.",
    ),
    "llama-factory messages with marks": (
        {
            "messages": [
                {"role": "user", "content": "<image>Who?"},
                {"role": "assistant", "content": "Kane."},
                {"role": "user", "content": "And <image> here?"},
                CUP,
            ],
            "images": ["b.png", "a.png"],
        },
        "user: [blue]Who? | assistant: Kane. | user: And [red] here? -> A cup.",
    ),
    "llama-factory sharegpt": (
        {
            "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cup."}],
            "images": ["a.png"],
            "system": "Be brief.",
        },
        "system: Be brief. | user: [red]What? -> A cup.",
    ),
    "llama-factory alpaca": (
        {
            "instruction": "Answer.",
            "input": "What?",
            "output": "A cup.",
            "system": "Be brief.",
            "history": [["Hi", "Yes?"]],
        },
        "system: Be brief. | user: Hi | assistant: Yes? | user: Answer.\nWhat? -> A cup.",
    ),
    "ms-swift": (
        {"query": "<image>What?", "response": "A cup.", "history": [["Hi", "Yes?"]], "images": ["a.png"]},
        "user: Hi | assistant: Yes? | user: [red]What? -> A cup.",
    ),
    "llava": (
        {
            "id": "000000033471",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}],
        },
        "user: [red]\nWhat? -> A cup.",
    ),
    "llava, text only": (
        {"id": "x", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cup."}]},
        "user: What? -> A cup.",
    ),
    "egothink": (
        {"source_dataset": "ego4d", "image_path": ["b.png"], "question": "What?", "answer": "A cup."},
        "user: [blue]What? -> A cup.",
    ),
    "egothink on the hub": (
        {"id": 3, "image": {"path": "a.png"}, "question": "What?", "answer": "A cup."},
        "user: [red]What? -> A cup.",
    ),
    "flat, no answer": ({"question": "What?", "image": "", "answer": ""}, "user: What? -> None"),
    "no images": ({"messages": [USER, CUP], "images": None}, "user: What? -> A cup."),
    "frames": ({"messages": [USER], "frames": ["a.png", "b.png"], "times": [0, 0.5]}, "user: [red][blue]What? -> None"),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_read_as_its_users_mean_it(read, name):
    row, expected = FORMS[name]
    (sample,) = read(row)
    assert shown(sample) == expected
    assert sample.id == str(row.get("id", "train.json: row 1"))


@pytest.mark.parametrize("name", FORMS)
def test_the_model_gets_each_form_as_written_by_hand(read, models, name):
    """The chat template's own text around each message, and the pixels of the pictures in their order."""
    row, expected = FORMS[name]
    (sample,) = read(row)
    prompter = load_prompter(models / "student", StudentSection(model=str(models / "student")), max_length=400)
    prompt, _, answer = expected.partition(" -> ")
    text = "".join(
        f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in (m.split(": ", 1) for m in prompt.split(" | "))
    )
    colors = re.findall(r"\[(red|blue)\]", text)
    text = re.sub(r"\[(red|blue)\]", "<|vision_start|><|image_pad|><|vision_end|>", text)
    rendered = prompter.prompt_text(sample)
    assert rendered.endswith(text + "<|im_start|>assistant\n")
    assert rendered.removesuffix(text + "<|im_start|>assistant\n") in (
        "",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    )
    inputs = prompter.encode(sample)
    if answer != "None":
        assert prompter.answer_text(inputs.target_ids.tolist()) == answer
    if not colors:
        assert inputs.images == {}
        return
    pixels, grids = inputs.images["pixel_values"], inputs.images["image_grid_thw"]
    firsts = torch.cumsum(torch.cat([torch.zeros(1, dtype=torch.int64), grids.prod(-1)]), 0)[:-1]
    channels = [
        pixels[int(first)].view(3, -1).mean(1) for first in firsts
    ]  # red, green, blue of each picture's first patch
    assert ["red" if each[0] > each[2] else "blue" for each in channels] == colors


def part(**keys):
    return {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", **keys}, TEXT]}]}


def indexed(*indices, content="What?", **columns):
    """A row as `datasets` has LLaVA's instruction mix: each part with all keys, and the index of its image."""
    parts = [{"index": index, "text": None, "type": "image"} for index in indices]
    parts.append({"index": None, "text": content, "type": "text"})
    answer = [{"index": None, "text": "A cup.", "type": "text"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["a.png", "b.png"], **columns}


def test_an_index_names_the_image_of_a_part(read):
    for indices, colors in (
        ((0, 1), "[red][blue]"), ((1, 0), "[blue][red]"), ((1, 0, 1), "[blue][red][blue]"), ((0.0, 1.0), "[red][blue]"),
        ((None, None), "[red][blue]"),
    ):  # fmt: skip
        (sample,) = read(indexed(*indices))
        assert shown(sample) == f"user: {colors}What? -> A cup."
    (ordered,), (plain,) = read(indexed(0, 1)), read(indexed(None, None))
    assert ordered.key == plain.key
    turns = [*indexed(1)["messages"], *indexed(0)["messages"]]
    (sample,) = read({"messages": turns, "images": ["a.png", "b.png"]})
    assert shown(sample) == "user: [blue]What? | assistant: A cup. | user: [red]What? -> A cup."
    frames = {"frames": ["a.png", "b.png"], "images": None, "times": [0, 1]}
    assert read(indexed(0, 1, **frames))[0].times == (0.0, 1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (indexed(0, 2), r"an image part has index = 2, but the row lists 2 images, counted from 0"),
        (indexed(0, images=[]), r"index = 0, but the row lists 0 images"),
        (indexed(0), r"no image part has index = 1, so that image is not used"),
        (indexed(0, None), r"some image parts have an 'index' and others do not"),
        (indexed(-1, 0), r"'index' of an image part must be the place of an image in the row's images, from 0, got -1"),
        (indexed(True, 0), r"from 0, got True"),
        (indexed("0", 1), r"from 0, got '0'"),
        (indexed(0.5, 1), r"from 0, got 0\.5"),
        (indexed(0, 1, content="<image>"), r"1 <image> marks and 2 image parts"),
        (part(index=0), r"an image part has 'index' and 'image'; keep one of them"),
        (indexed(1, 0, images=None, frames=["a.png", "b.png"], times=[0, 1]), r"'times' are of frames in their order"),
        ({"messages": [{"role": "user", "content": [{**TEXT, "index": 0}]}]}, r"a text part has the unknown key 'index'"),
    ],
)  # fmt: skip
def test_an_index_that_names_no_image_is_refused(read, row, message):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        read(row)


def test_columns_by_other_names(read):
    row = {"query": "What?", "label": "A cup.", "file": "a.png", "uid": 7, "source": "web"}
    columns = {"question": "query", "answer": "label", "image": "file", "id": "uid"}
    (sample,) = read(row, columns=columns, ignore_columns=frozenset({"source"}))
    assert (shown(sample), sample.id) == ("user: [red]What? -> A cup.", "7")
    with pytest.raises(
        DataError, match=r"data\.columns takes 'answer' from 'label', but the row also has a column 'answer'"
    ):
        read({**row, "answer": "x"}, columns=columns, ignore_columns=frozenset({"source"}))


def test_a_mark_that_is_meant_as_text(read):
    row = {"messages": [{"role": "user", "content": "What does <image> mean in HTML?"}]}
    (sample,) = read(row, format="trl")
    assert shown(sample) == "user: What does <image> mean in HTML? -> None"
    with pytest.raises(DataError, match=r"places for 1 image, but the row lists 0; .* set data\.format: trl"):
        read(row)


BAD = [
    ({"messages": [USER], "image": "a.png", "images": ["a.png"]}, r"'images' and 'image' exclude each other"),
    ({"messages": [USER], "videos": ["a.mp4"]}, r"the row has the key 'videos': video files are not read"),
    ({"messages": [USER], "imagse": ["a.png"]}, r"unknown key 'imagse'; did you mean 'images?'\?"),
    ({"messages": [USER], "split": "x"}, r"unknown key 'split'; known here: .*data\.ignore_columns: \[split\]"),
    ({"messages": [{**USER, "weight": 0}]}, r"a message has the key 'weight': every answer has the weight 1"),
    ({"messages": [{**USER, "name": "Bob"}]}, r"a message has the unknown key 'name'"),
    (part(max_pixels="100"), r"'max_pixels' of an image part must be a whole number of pixels, got '100'"),
    (part(min_pixels=0), r"'min_pixels' of an image part must be a whole number of pixels, got 0"),
    (part(min_pixels=True), r"'min_pixels' of an image part must be a whole number of pixels, got True"),
    (part(max_pixels=0.5), r"'max_pixels' of an image part must be a whole number of pixels, got 0.5"),
    (part(min_pixels=101, max_pixels=100), r"has min_pixels = 101, more than its max_pixels = 100"),
    (part(detail="low"), LIMIT),
    (part(resized_height=100), LIMIT),
    (part(path="b.png"), r"an image part has 'image' and 'path'"),
    (part(fps=2), r"video files are not read"),
    (part(alt="a cup"), r"an image part has the unknown key 'alt'"),
    ({**part(), "images": ["b.png"]}, r"1 image parts bring their own image, 0 do not, and the row lists 1"),
    (part(image="https://host/a.png"), r"is an address; set data\.allow_urls: true to fetch it"),
    (part(image="file:///etc/hostname"), r"is outside data\.root"),
    (part(image="data:image/png,xx"), r"is a data: URL that is not base64"),
    (part(image="data:image/png;base64,@@"), r"image 1 is not base64"),
    ({"messages": [USER], "images": [{"bytes": None, "path": "/etc/hostname"}]}, r"is outside data\.root"),
    ({"messages": [USER], "images": [{"url": "a.png"}]}, r"an image has the unknown key 'url'"),
    ({"messages": [USER], "images": [None]}, r"an image must be a path relative to data\.root, got NoneType"),
    (
        {"messages": [{"role": "user", "content": "<image><image>x"}], "images": ["a.png"]},
        r"have places for 2 images, but the row lists 1; make the numbers equal",
    ),
    (
        {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>"}]}],
            "images": ["a.png"] * 2,
        },
        r"1 <image> marks and 1 image parts; keep one kind",
    ),
    (
        {"messages": [{"role": "user", "content": "<video>x"}]},
        r"a text has the mark <video>, which is not supported",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "<image>"}], "images": ["a.png"]},
        r"an answer cannot hold an image",
    ),
    (
        {"messages": [USER, {"role": "tool", "content": "x"}]},
        r"role must be one of system, user, assistant, got 'tool'",
    ),
    ({"conversations": [{"from": "function_call", "value": "x"}]}, r"'from' must be one of human, user, gpt"),
    ({"conversations": [{"from": "human", "text": "x"}]}, r"a turn has the unknown key 'text'"),
    (
        {"messages": [USER], "conversations": [{"from": "human", "value": "x"}]},
        r"'messages' and 'conversations', which belong to different forms",
    ),
    ({"prompt": "x", "completion": [USER]}, r"'completion' must hold only assistant messages"),
    ({"instruction": "x", "history": [["a"]]}, r"'history' must list pairs"),
    ({"question": ["x"]}, r"'question' must be a string"),
    ({"text": "x"}, r"the row has 'text': expected one of messages, conversations.*data\.columns"),
    ({}, r"the row has no columns"),
    ({"messages": [USER], "times": [float("1e308") * 10], "frames": ["a.png"]}, r"Infinity is not JSON"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]},
        r"has type 'video', but only text and images",
    ),
    ({"messages": [USER], "system": 5}, r"content must be a string or a list of parts, got 5"),
    ({"messages": [USER], "category": ["a"]}, r"'category' must be a name"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_what_cannot_be_acted_on_is_refused_by_name(read, row, message):
    with pytest.raises(DataError, match=message) as error:
        read(row)
    assert "\n" not in str(error.value)
    assert "row 1" in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("answers", ["yes", [], [1], [{"text": "yes"}], [None], {"a": "b"}])
def test_several_answers_that_are_no_texts_are_refused(tmp_path, answers):
    row = {"messages": [{"role": "user", "content": "Is it?"}], "answers": answers}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'answers' must list the texts that several people answered"):
        load_samples(tmp_path / "rows.jsonl")
