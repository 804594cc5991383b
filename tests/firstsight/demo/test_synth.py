"""The synthetic data: the same bytes for a seed, balanced, nothing shared between the splits, every answer true of the scene."""

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from firstsight.cli import main
from firstsight.data.samples import load_samples
from firstsight.demo.synth.captions import caption, wordings
from firstsight.demo.synth.drawing import render
from firstsight.demo.synth.questions import ask
from firstsight.demo.synth.scenes import CATEGORIES, ENVIRONMENTS, sample_clip
from firstsight.demo.synth.writing import descriptions, questions, write_dataset

SURFACES = {"kitchen": "counter", "office": "desk", "workshop": "workbench", "garden": "table", "bathroom": "shelf"}
COLUMNS = {"on the far left": 0, "on the left": 1, "on the right": 2, "on the far right": 3}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
VERBS = {
    "filling": "mug",
    "pouring from": "bottle",
    "reading": "book",
    "eating": "apple",
    "stirring with": "spoon",
    "swinging": "hammer",
    "turning": "key",
    "tipping": "bowl",
}


def folder_digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_and_less_is_the_beginning_of_more(tmp_path):
    for name, train in (("a", 42), ("b", 42), ("c", 80)):
        write_dataset(tmp_path / name, train=train, validation=14, seed=5, progress=False)
    a, b, c = (folder_digest(tmp_path / name) for name in "abc")
    assert a == b
    assert {name: digest for name, digest in c.items() if name in a and name != "train.jsonl"} == {
        name: digest for name, digest in a.items() if name != "train.jsonl"
    }
    assert (tmp_path / "c" / "train.jsonl").read_text().startswith((tmp_path / "a" / "train.jsonl").read_text())
    write_dataset(tmp_path / "d", train=42, validation=14, seed=6, progress=False)
    assert not set(folder_digest(tmp_path / "d").values()) & set(a.values())


def test_rows_are_what_the_loader_and_trl_take_and_no_picture_is_in_both_splits(tmp_path):
    write_dataset(tmp_path / "data", train=140, validation=70, seed=0, progress=False)
    pictures = {}
    for split in ("train", "validation"):
        samples = load_samples(tmp_path / "data" / f"{split}.jsonl", tmp_path / "data")
        assert len({sample.id for sample in samples}) == len(samples)
        assert set(Counter((s.category, s.environment) for s in samples).values()) == {len(samples) // 35}
        for sample in samples:
            assert len(sample.images) > 1 or sample.category != "temporal"
        rows = [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()]
        assert all(row["messages"][0]["content"].count({"type": "image"}) == len(row["images"]) for row in rows)
        pictures[split] = {
            hashlib.sha256((tmp_path / "data" / name).read_bytes()).hexdigest()
            for row in rows
            for name in row["images"]
        }
        used = Counter(name for row in rows for name in row["images"])
        assert max(used.values()) == 2, "some pictures serve two questions"
        with Image.open(tmp_path / "data" / rows[0]["images"][0]) as image:
            assert image.size == (224, 224)
    assert not pictures["train"] & pictures["validation"]


def test_a_folder_that_holds_files_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    result = CliRunner().invoke(main, ["data", "synth", str(tmp_path / "data"), "--train", "7", "--validation", "7"])
    assert result.exit_code == 2
    assert "new or empty folder" in result.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_the_pixels_follow_the_scene():
    rng = np.random.default_rng(0)
    clip = sample_clip(rng, "garden", "temporal")
    first, second = (np.asarray(render(scene)) for scene in clip.frames[:2])
    assert first.shape == (224, 224, 3)
    assert (first != second).any()
    assert (np.asarray(render(clip.frames[0])) == first).all()


def cell_of(text):
    row, column = re.fullmatch(r"at the (back|front) (on the .*)", text).groups()
    return (1 if row == "back" else 2), COLUMNS[column]


def thing(text):
    colour, kind = re.fullmatch(r"(?:a|an|the|The) (\w+) (\w+)", text).groups()
    return kind, colour


def laid(scene):
    return {(p.row, p.column): (p.item.kind, p.item.colour) for p in scene.placed}


def held(scene, side):
    hand = getattr(scene, side)
    return hand, None if hand.item is None else (hand.item.kind, hand.item.colour)


def everything(scene):
    found = [*laid(scene).values(), *(held(scene, side)[1] for side in ("left", "right"))]
    return [each for each in found if each is not None]


def check_hand(scene, side, doing):
    hand, item = held(scene, side)
    if doing == f"resting on the {SURFACES[scene.environment]}":
        assert (hand.action, item) == ("rest", None)
    elif doing.startswith("pointing at "):
        assert hand.action == "point"
        assert laid(scene)[2, hand.column] == thing(doing.removeprefix("pointing at "))
    elif doing.startswith("holding "):
        assert (hand.action, item) == ("hold", thing(doing.removeprefix("holding ")))
    else:
        verb = next(verb for verb in VERBS if doing.startswith(f"{verb} the"))
        assert (hand.action, item) == ("use", thing(doing.removeprefix(f"{verb} ")))
        assert item[0] == VERBS[verb]


def check_answer(clip, question, answer):
    """Derive what the answer claims from the scene, by other code than that which wrote it. Returns the kind of answer."""
    scene, last = clip.frames[0], clip.frames[-1]
    surface, place = SURFACES[scene.environment], scene.environment
    forms = {
        "what is there": r"There is (an? \w+ \w+) (at the (?:back|front) .*)\.",
        "in hand": r"You have (an? \w+ \w+) in your (left|right) hand\.",
        "by colour": r"The (\w+) thing (on the \w+|in your (?:left|right) hand) is an? (\w+)\.",
        "where": r"(The \w+ \w+) is (at the .*) of the (\w+)\.",
        "beside": r"(The \w+ \w+) is directly (to the left of|to the right of|in front of|behind) (the \w+ \w+)\.",
        "both hands": r"Your left hand is (.*), and your right hand is (.*)\.",
        "one hand": r"Your (left|right) hand is (.*)\.",
        "count": r"There (is|are) (\w+) (\w+(?: \w+)?) on the (\w+)\.",
        "colour of": r"The (\w+) (on the \w+|in your (?:left|right) hand|at the .*) is (\w+)\.",
        "room": r"You are in the (\w+), standing at the (\w+)\.",
        "behind": r"You are in the (\w+), and there is a (\w+) on the (\w+) (on the .*)\.",
        "description": r"You are in the (\w+) and see (.*) on the (\w+)\.",
        "picked up": r"You picked up (the \w+ \w+) with your (left|right) hand\.",
        "put or moved": r"You (put|moved) (the \w+ \w+) (?:down at|to) the (back|front) of the (\w+) (on the .*)\.",
        "order": r"First you picked up (the \w+ \w+), and then you picked up (the \w+ \w+)\.",
    }
    form, match = next((name, m) for name, pattern in forms.items() if (m := re.fullmatch(pattern, answer)))
    g = match.groups()
    if form == "what is there":
        assert laid(scene)[cell_of(g[1])] == thing(g[0])
        assert g[1] in question
    elif form == "in hand":
        assert held(scene, g[1])[1] == thing(g[0])
        assert f"my {g[1]} hand" in question
    elif form in ("by colour", "colour of"):
        colour, where, kind = g if form == "by colour" else (g[2], g[1], g[0])
        if where.startswith("at"):
            assert laid(scene)[cell_of(where)] == (kind, colour)
        else:
            same = [e for e in everything(scene) if e[form == "by colour"] == (colour if form == "by colour" else kind)]
            assert same == [(kind, colour)]
            inside = where == f"on the {surface}"
            assert ((kind, colour) in laid(scene).values()) == inside
            assert inside or held(scene, where.split()[2])[1] == (kind, colour)
    elif form == "where":
        assert laid(scene)[cell_of(g[1])] == thing(g[0])
        assert g[2] == surface
    elif form == "beside":
        cells = {item: cell for cell, item in laid(scene).items()}
        (r1, c1), (r2, c2) = cells[thing(g[0])], cells[thing(g[2])]
        steps = {"to the left of": (0, -1), "to the right of": (0, 1), "in front of": (1, 0), "behind": (-1, 0)}
        assert (r1 - r2, c1 - c2) == steps[g[1]]
    elif form == "both hands":
        check_hand(scene, "left", g[0])
        check_hand(scene, "right", g[1])
    elif form == "one hand":
        check_hand(scene, *g)
        assert f"my {g[0]} hand" in question
    elif form == "count":
        noun = g[2] if g[0] == "is" else g[2][:-1]
        wanted = noun.removesuffix(" thing").removesuffix("thing")
        count = sum(wanted in ("", kind, colour) for kind, colour in laid(scene).values())
        assert NUMBERS.index(g[1]) == count
        assert (g[0] == "is") == (count == 1)
        assert g[3] == surface
    elif form == "room":
        assert g == (place, surface)
    elif form == "behind":
        assert g[:2] == (place, scene.landmark)
        assert COLUMNS[g[3]] == scene.landmark_column
    elif form == "description":
        assert (g[0], g[2]) == (place, surface)
        assert [thing(part) for part in re.split(r", | and ", g[1])] == [laid(scene)[c] for c in sorted(laid(scene))]
    elif form == "picked up":
        assert thing(g[0]) in laid(scene).values()
        assert thing(g[0]) not in laid(last).values()
        assert (held(scene, g[1])[1], held(last, g[1])[1]) == (None, thing(g[0]))
    elif form == "put or moved":
        cell = (1 if g[2] == "back" else 2), COLUMNS[g[4]]
        assert laid(last)[cell] == thing(g[1])
        assert cell not in laid(scene)
        assert (thing(g[1]) in laid(scene).values()) == (g[0] == "moved")
    else:
        first, second = thing(g[0]), thing(g[1])
        middle = clip.frames[1]
        assert {first, second} <= set(laid(scene).values())
        assert first not in laid(middle).values()
        assert second in laid(middle).values()
        assert not {first, second} & set(laid(last).values())
    return form


def test_every_answer_is_true_of_the_scene_and_every_kind_is_asked():
    forms = Counter(check_answer(q.clip, q.question, q.answer) for q in questions(11, "train", 2100))
    assert len(forms) == 15
    assert min(forms.values()) >= 20


def test_counts_cannot_be_guessed():
    answers = Counter(q.answer.split()[2] for q in questions(12, "train", 3500) if q.category == "counting")
    assert max(answers.values()) / sum(answers.values()) < 0.35


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_clip_that_does_not_suit_is_refused(category):
    other = "temporal" if category != "temporal" else "counting"
    with pytest.raises(ValueError, match="does not suit"):
        ask(np.random.default_rng(0), sample_clip(np.random.default_rng(0), ENVIRONMENTS[0], other), category)


def test_few_labels_keep_the_questions_and_the_labelled_rows_are_a_file_of_their_own(tmp_path):
    for name, labels in (("all", None), ("few", 10), ("one", 1)):
        write_dataset(tmp_path / name, train=70, validation=14, seed=3, labels=labels, progress=False)
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
        for name in ("all", "few", "one")
    }
    labelled = [json.loads(line) for line in (tmp_path / "few" / "labelled.jsonl").read_text().splitlines()]
    assert [row for row in rows["few"] if len(row["messages"]) == 2] == labelled
    assert len(labelled) == 10
    assert [row for row in rows["all"] if row["id"] in {each["id"] for each in labelled}] == labelled
    for whole, row in zip(rows["all"], rows["few"], strict=True):
        assert row | {"messages": row["messages"][:1]} == whole | {"messages": whole["messages"][:1]}
    assert [row["id"] for row in rows["one"] if len(row["messages"]) == 2] == [labelled_id(tmp_path / "one")]
    assert not (tmp_path / "all" / "labelled.jsonl").exists()
    validation = (tmp_path / "few" / "validation.jsonl").read_bytes()
    assert validation == (tmp_path / "all" / "validation.jsonl").read_bytes()


def labelled_id(folder):
    return json.loads((folder / "labelled.jsonl").read_text())["id"]


def test_more_labels_than_samples_are_refused(tmp_path):
    found = CliRunner().invoke(main, ["data", "synth", str(tmp_path / "d"), "--train", "7", "--labels", "8"])
    assert found.exit_code == 2
    assert "8 training samples cannot keep their answers" in found.output
    assert not (tmp_path / "d").exists()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_of(row):
    return row["messages"][1]["content"][0]["text"]


@pytest.mark.parametrize("share", [0.4, 0.05, 1.0])
def test_swapped_labels_are_other_answers_of_their_category_and_nothing_else_changes(tmp_path, share):
    for name, swapped in (("clean", 0.0), ("noisy", share), ("again", share)):
        write_dataset(tmp_path / name, train=280, validation=14, seed=3, swapped=swapped, progress=False)
    assert folder_digest(tmp_path / "noisy") == folder_digest(tmp_path / "again")
    assert (tmp_path / "noisy" / "validation.jsonl").read_bytes() == (
        tmp_path / "clean" / "validation.jsonl"
    ).read_bytes()
    clean, noisy = (rows_of(tmp_path / name / "train.jsonl") for name in ("clean", "noisy"))
    known = {category: {answer_of(row) for row in clean if row["category"] == category} for category in CATEGORIES}
    wrong = Counter()
    for before, after in zip(clean, noisy, strict=True):
        assert after | {"messages": after["messages"][:1]} == before | {"messages": before["messages"][:1]}
        assert answer_of(after) in known[after["category"]]
        wrong[after["category"]] += answer_of(after) != answer_of(before)
    assert set(wrong.values()) == {round(share * 40)}
    asked = rows_of(tmp_path / "noisy" / "questions.jsonl")
    assert asked == [row | {"messages": row["messages"][:1]} for row in clean]
    assert not (tmp_path / "clean" / "questions.jsonl").exists()


def test_labels_that_cannot_be_swapped_are_refused(tmp_path):
    options = ["--train", "7", "--validation", "7", "--swapped", "1", "--no-progress"]
    found = CliRunner().invoke(main, ["data", "synth", str(tmp_path / "d"), *options])
    assert found.exit_code == 2
    assert "1 training samples of category object_recognition have no two different answers" in found.output
    assert not (tmp_path / "d").exists()


def test_few_and_swapped_labels_go_together(tmp_path):
    write_dataset(tmp_path / "d", train=140, validation=7, seed=3, labels=70, swapped=0.5, progress=False)
    write_dataset(tmp_path / "clean", train=140, validation=7, seed=3, labels=70, progress=False)
    pairs = zip(rows_of(tmp_path / "d" / "labelled.jsonl"), rows_of(tmp_path / "clean" / "labelled.jsonl"), strict=True)
    assert 15 < sum(answer_of(mine) != answer_of(other) for mine, other in pairs) < 55


def test_descriptions_are_drawn_as_likely_as_the_wordings_say():
    drawn = list(descriptions(5, "train", 60))
    assert {question.environment for question in drawn} == set(ENVIRONMENTS)
    for question in drawn:
        known = wordings(question.clip)
        assert question.answer in known
        assert sum(known.values()) == pytest.approx(1)
        assert 1 <= len(question.clip.frames[0].placed) <= 3
        assert len(known) == (48 if len(question.clip.frames[0].placed) == 1 else 192)
    clip = next(question.clip for question in drawn if len(question.clip.frames[0].placed) == 2)
    counts = Counter(caption(np.random.default_rng([1, i]), clip)[1] for i in range(4000))
    known = wordings(clip)
    assert set(counts) <= set(known)
    expected = np.array([known[text] * 4000 for text in known])
    found = np.array([counts[text] for text in known])
    assert ((found - expected) ** 2 / expected).sum() < len(known) + 4 * np.sqrt(2 * len(known)), "chi squared"


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_clip_has_wordings_and_what_happened_closes_them(category):
    rng = np.random.default_rng(8)
    for environment in ENVIRONMENTS:
        clip = sample_clip(rng, environment, category)
        request, text = caption(rng, clip)
        assert text in wordings(clip)
        assert request
        assert all(("You " in each.split(". ")[-1]) for each in wordings(clip)) or category != "temporal"


def test_described_pictures_are_written_with_their_questions_alone(tmp_path):
    write_dataset(tmp_path / "d", train=12, validation=5, seed=1, described=True, progress=False)
    train = rows_of(tmp_path / "d" / "train.jsonl")
    assert [answer_of(row) for row in train] == [question.answer for question in descriptions(1, "train", 12)]
    assert {row["category"] for row in train} == {"description"}
    asked = rows_of(tmp_path / "d" / "questions.jsonl")
    assert asked == [row | {"messages": row["messages"][:1]} for row in train]
    assert len(load_samples(tmp_path / "d" / "validation.jsonl", tmp_path / "d")) == 5
