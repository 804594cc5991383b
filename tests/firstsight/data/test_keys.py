"""The identity of rows in the form of the first version: caches that were made then are found by it."""

import base64
import json

import pytest

from firstsight.data.samples import load_samples

RED = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAAD0lEQVR4nGP4z8DAwMAAAAUEAQFjVg5XAAAAAElFTkSuQmCC"
)
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(answer):
    return {"role": "assistant", "content": answer}


# computed by the version before rows of other forms were read
KEYS = [
    (
        {"messages": [user(IMAGE, text("What is this?")), assistant("A cup.")], "images": ["one.png"]},
        "e43b8581fee8ad50c78e3e6af7be095d38fafc03cea36fb2a69006a331339c90",
    ),
    (
        {"messages": [{"role": "user", "content": "What is this?"}], "images": ["one.png"]},
        "9fd3779d95cb2b4bcb7a44de253764f82555397e102a8221afffdda4874022e5",
    ),
    (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Größe? \u2028 e\u0301"},
                assistant("5"),
            ]
        },
        "0a8541fd8ea719ef705a4d077512aa51f07ba747fca2d8223478dd8049801c27",
    ),
    (
        {
            "messages": [
                user(IMAGE, text("x"), IMAGE, text("y")),
                assistant("1"),
                user(text("z")),
                assistant([text("p"), text("q")]),
            ],
            "frames": ["one.png", "one.png"],
            "times": [0, 1.5],
        },
        "7e88aaa73fe3eb08e507ea44bb0247faf6fbad1267212cd296024ec7a12b4d23",
    ),
    (
        {
            "messages": [{"role": "user", "content": ""}, assistant(" ok ")],
            "category": "c",
            "environment": "e",
            "options": ["a", "b"],
        },
        "d2c4a82d64d01fff471ab62561023c5894372add34a02442087accc82313ed3e",
    ),
]


@pytest.mark.parametrize(("row", "key"), KEYS)
@pytest.mark.parametrize("container", ["jsonl", "json"])
def test_keys_are_those_of_the_first_version(tmp_path, row, key, container):
    (tmp_path / "one.png").write_bytes(RED)
    path = tmp_path / f"rows.{container}"
    path.write_text(json.dumps({"id": "a", **row} if container == "jsonl" else [{"id": "a", **row}]))
    assert load_samples(path, tmp_path)[0].key == key
