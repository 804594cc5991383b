"""`min_pixels` and `max_pixels` of an image part: they act where images have a size in pixels, and are refused by name elsewhere."""

import json

import pytest
import torch
from checkpoints import VISION
from test_pairs import assert_stored_are_those_of_a_plain_forward
from world import fs_teacher, make_world, passes

from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from firstsight.pair import load_prompter
from firstsight.recipe import StudentSection

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture
def load(tmp_path, rows):
    rows(([], "draws the pictures", None))

    def make(*limits, images=("large.png", "small.png")):
        parts = [{"type": "image", **limit} for limit in limits]
        row = {
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}],
            "images": images,
        }
        path = tmp_path / "limits.jsonl"
        path.write_text(json.dumps(row) + "\n")
        (sample,) = load_samples(path, tmp_path)
        return sample

    return make


@pytest.mark.parametrize("kind", QWEN)
def test_each_image_has_its_own(kind, checkpoint, load):
    prompter = load_prompter(checkpoint(kind), StudentSection())
    limits = ({"max_pixels": 56 * 56}, {"min_pixels": 84 * 84, "max_pixels": 112 * 112})
    sample = load(*limits)
    encoded = prompter.encode(sample, [])
    stock = prompter.processor.image_processor
    sizes = [
        {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
        {"shortest_edge": 84 * 84, "longest_edge": 112 * 112},
    ]
    made = [
        stock(images=[image], size=size, return_tensors="pt")
        for image, size in zip(sample.open_images(), sizes, strict=True)
    ]
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(encoded.images[name], torch.cat([each[name] for each in made])), name
    tokens, image_tokens = prompter.prompt_tokens(sample)
    assert (tokens, image_tokens) == (len(encoded.input_ids), int(encoded.token_types["mm_token_type_ids"].sum()))
    assert image_tokens == sum(int(each["image_grid_thw"].prod()) // 4 for each in made)
    assert stock.size["longest_edge"] == 112 * 112  # the model's own are left as they are


def test_the_smaller_of_the_largest_counts(checkpoint, load):
    small = load_prompter(checkpoint("qwen2_vl"), StudentSection(max_pixels=56 * 56))
    bare, wide = load({}, {}), load({"max_pixels": 10**9}, {"max_pixels": 10**9})
    assert torch.equal(small.encode(wide, []).images["pixel_values"], small.encode(bare, []).images["pixel_values"])
    sample = load({}, {"min_pixels": 100 * 100})
    refused = r"limits\.jsonl:1: .*min_pixels = 10,000 of an image is more than the model's max_pixels = 3,136"
    for look in (small.prompt_tokens, small.encode):
        with pytest.raises(DataError, match=refused):
            look(sample)


@pytest.mark.parametrize("kind", [kind for kind in VISION if kind not in QWEN])
def test_other_families_refuse_them(kind, checkpoint, load):
    prompter = load_prompter(checkpoint(kind), StudentSection())
    sample = load({}, {"max_pixels": 56 * 56})
    refused = rf"limits\.jsonl:1: .*min_pixels and max_pixels of an image have no effect on {prompter.family.name}"
    for look in (prompter.prompt_tokens, prompter.encode):
        with pytest.raises(DataError, match=refused):
            look(sample)


def test_they_are_in_the_key_only_where_they_are(load):
    bare, limited = load({}, {}), load({"max_pixels": 100}, {})
    assert bare.image_limits == (None, None)
    assert len({bare.key, limited.key, load({"min_pixels": 100}, {}).key, load({"max_pixels": 101}, {}).key}) == 4
    assert load({"max_pixels": None}, {}).key == bare.key
    assert load({"max_pixels": 100.0}, {}).key == limited.key
    assert limited.image_marks[1] == bare.image_marks[1]
    assert limited.image_marks[0] != bare.image_marks[0]


def test_a_dump_sees_one_image_at_two_sizes(tmp_path):
    """Questions about one image share its features, but for one that has other pixels."""
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    path = tmp_path / "data" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["images"] = ["2.png"]
        limit = {"max_pixels": 28 * 56} if number % 2 else {}
        row["messages"][0]["content"] = [{"type": "image", **limit}, row["messages"][0]["content"][-1]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    passes(fs_teacher, "dump", "--config", recipe, "--no-progress")
    assert_stored_are_those_of_a_plain_forward(recipe, "qwen2_vl")
