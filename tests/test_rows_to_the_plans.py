"""Rows of every form of docs/data.md, changed at random, through check and both plans: each is counted or refused by name, never lost."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from firstsight.data.check import check_data
from firstsight.data.samples import load_samples
from firstsight.errors import FirstSightError
from firstsight.recipe import load_recipe
from phase1_teacher.planning.plan import plan_dump
from phase2_student.planning.plan import plan_training

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = [row.replace(".jpg", ".png") for row in re.findall(r"```json\n(\{.*?\})\n```", PAGE)]
WORDS = ("What is this?", "A cup.", "The first is red.", "Be brief.", "What am I holding?", "A bottle.", "A cup falls.")
MARKS = ["<image>", "<video>", "<|im_end|>", "<|image_pad|>", "\0", "\ufeff", "e\u0301", "{{x}}", "\u2028", "A" * 400]
KEYS = ["videos", "tools", "label", "images", "image", "frames", "times", "system", "history", "fps", "Image", "extra"]
VALUES = [None, True, 0, 1.5, "", "x", [], {}, [None], [{}], ["images/a.png"], "images/a.png", [0, 0.5]]
PATHS = [
    "images/half.png",
    "images/none.png",
    "../x.png",
    "/etc/hostname",
    "images",
    "i" * 300,
    "a\nb.png",
    "http://127.0.0.1/a.png",
]
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "", None, 5]
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    (directory / "data" / "images").mkdir(parents=True)
    for name, mode in (("a", "RGB"), ("b", "LA")):
        Image.new(mode, (60, 60)).save(directory / "data" / "images" / f"{name}.png")
    whole = (directory / "data" / "images" / "a.png").read_bytes()
    (directory / "data" / "images" / "half.png").write_bytes(whole[:60])
    recipe = {
        "teacher": {"model": str(models / "teacher"), "quantization": "none", "dtype": "float32"},
        "student": {"model": str(models / "student")},
        "data": {"train": "rows.jsonl", "validation": "none"},
        "cache": {"top_k": 8, "generate_missing": True},
        "training": {"report_to": "none", "use_cpu": True},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def nodes(value, path=()):
    """Every value of a row with its path; the row itself has none and is left out."""
    found = [(path, value)] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [each for key, inner in items for each in nodes(inner, (*path, key))]


def changed(draw, row):
    """A row with one thing changed."""
    found = nodes(row)
    path, value = draw(st.sampled_from(found))
    parent = row
    for key in path[:-1]:
        parent = parent[key]
    way = draw(st.sampled_from(["key", "value", "mark", "gone", "again"]))
    if way == "key":
        (value if isinstance(value, dict) else row)[draw(st.sampled_from(KEYS))] = deepcopy(
            draw(st.sampled_from(VALUES))
        )
    elif way == "mark" and isinstance(value, str):
        place = draw(st.integers(0, len(value)))
        if value.startswith("images/"):
            parent[path[-1]] = draw(st.sampled_from(PATHS))
        elif path[-1] in ("role", "from"):
            parent[path[-1]] = draw(st.sampled_from(ROLES))
        else:
            parent[path[-1]] = value[:place] + draw(st.sampled_from(MARKS)) + value[place:]
    elif way == "gone":
        del parent[path[-1]]
    elif way == "again" and isinstance(parent, list):
        parent.append(json.loads(json.dumps(value)))
    else:
        parent[path[-1]] = deepcopy(draw(st.sampled_from(VALUES)))


@st.composite
def files(draw):
    """A row, and the bytes of a file with it."""
    row = json.loads(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 2))):
        if row:
            changed(draw, row)
    text = json.dumps(row, ensure_ascii=draw(st.booleans()))
    return row, text.encode(draw(st.sampled_from(ENCODINGS)), "replace")


ROW = {"prompt": "<|im_end|>What is this?", "completion": "A cup.", "image": "images/a.png"}
ENDED = (ROW, json.dumps(ROW).encode())
"""A row whose only sample a model cannot take, so that none is left."""


def texts(value):
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in texts(each)]


@given(files(), st.sampled_from(["stop", "skip"]), st.sampled_from(["all", "last"]))
@example(ENDED, "skip", "all")
@settings(
    max_examples=60, deadline=None, derandomize=True
)  # the same rows everywhere: a new find is no other change's fault
def test_a_row_is_counted_or_refused_by_name(place, file, on_error, turns):
    row, data = file
    (place / "data" / "rows.jsonl").write_bytes(data)
    recipe = load_recipe(place / "recipe.yaml", [f"cache.on_error={on_error}", f"data.turns={turns}"])
    report = check_data(recipe.sources(), turns=turns)
    assert all("\n" not in line and line.startswith("rows.jsonl") and len(line) < 900 for line in report.faults)
    assert sum(report.summary.rows.values()) + report.fault_count >= 1
    if not report.lost:
        (sample,) = load_samples(recipe.source("train"))
        said = "".join(p["text"] for m in sample.messages for p in m["content"] if p["type"] == "text")
        shown = {
            key: value
            for key, value in row.items()
            if key not in ("options", "answers", "category", "environment", "id")
        }
        for words in WORDS:
            assert sum(text.replace("<image>", "").count(words) for text in texts(shown)) == said.count(words)
        written = sum(
            p["text"].startswith("images/") for m in sample.messages for p in m["content"] if p["type"] == "text"
        )
        assert sum(text.startswith("images/") for text in texts(shown)) == len(sample.images) + written
    for plan in (plan_of_dump, plan_of_training):
        count, refusal = plan(recipe)
        assert len(refusal) < 2000
        assert count == 1 or refusal or report.lost


def plan_of_dump(recipe):
    """How many rows it counts, and what it says where it refuses them."""
    try:
        return plan_dump(recipe, progress=False).demand.rows, ""
    except FirstSightError as error:
        return 0, str(error)


def plan_of_training(recipe):
    try:
        return plan_training(recipe, progress=False).work.samples, ""
    except FirstSightError as error:
        return 0, str(error)
