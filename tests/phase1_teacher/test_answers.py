"""The teacher's answers as rows: of either kind of cache, in the order of the data, readable as training data again."""

import base64
import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from firstsight.data.samples import load_samples
from firstsight.recipe import load_recipe
from phase1_teacher.cli import main
from phase1_teacher.dump import dump, prepare_dump
from storage.exact import ExactCache, open_any_cache
from storage.reader import open_cache
from storage.wording import counted

GENERATE = {"generate_missing": True, "generate_max_tokens": 6}


def invoke(command, *arguments, code=0, keep_cut=True):
    """`keep_cut`: the random teacher hardly ever ends its turn."""
    more = ["--keep-cut"] * (command == "answers" and keep_cut)
    done = CliRunner().invoke(main, [command, *map(str, arguments), *more])
    assert done.exit_code == code, done.output
    return done


def mixed(workshop, count=14):
    """Rows in turn with an answer and without; the last two, for validation, without."""
    rows = workshop.rows(count)
    for number in [*range(1, count - 2, 2), count - 2, count - 1]:
        del rows[number]["messages"][-1]
    return rows


def dumped(workshop, rows, **cache):
    path = workshop.recipe(rows, cache={**GENERATE, **cache})
    recipe = load_recipe(path)
    job = prepare_dump(recipe, progress=False)
    dump(job, progress=False)
    return path, recipe, job


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("targets", ["top_k", "exact"])
def test_rows_are_those_without_an_answer_in_their_order(workshop, targets):
    rows = mixed(workshop)
    sections = {"targets": targets} | ({"top_k": None} if targets == "exact" else {})
    path = workshop.recipe(rows, cache={**GENERATE, **sections})
    content = yaml.safe_load(path.read_text())
    content["cache"] = {name: value for name, value in content["cache"].items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    recipe = load_recipe(path)
    job = prepare_dump(recipe, progress=False)
    dump(job, progress=False)
    done = invoke("answers", recipe.cache_location, "--config", path, "--no-progress")
    file = workshop.directory / "data" / "answers.jsonl"
    made = read(file)
    assert [row["id"] for row in made] == ["s1", "s3", "s5", "s7", "s9", "s11"]
    assert f"{file}: 6 rows of train.jsonl, answered by the teacher" in done.stdout
    assert "6 rows have an answer of their own" in done.stderr
    cache = open_any_cache(recipe.cache_location)
    by_id = {sample.id: sample for sample in load_samples(recipe.source("train"))}
    for row in made:
        assert row["messages"][:-1] == rows[int(row["id"][1:])]["messages"]
        assert row["images"] == rows[int(row["id"][1:])]["images"]
        key = by_id[row["id"]].key
        ids = cache.rows(key).target_ids if isinstance(cache, ExactCache) else cache[key].targets.target_ids
        text = job.pair.teacher.answer_text(ids.tolist())
        assert row["messages"][-1] == {
            "role": "assistant",
            "content": [{"type": "text", "text": text.rstrip("\ufffd")}],
        }
    again = workshop.directory / "again.jsonl"
    invoke("answers", recipe.cache_location, "--config", path, "--out", again)
    assert again.read_bytes() == file.read_bytes()


def test_what_is_written_is_training_data(workshop):
    path, recipe, _ = dumped(workshop, mixed(workshop))
    invoke("answers", recipe.cache_location, "--config", path)
    train = load_recipe(path, ["data.train=[train.jsonl, answers.jsonl]"])
    samples = load_samples(train.source("train"))
    assert len(samples) == 18
    answered = [sample for sample in samples if sample.place.startswith("answers.jsonl")]
    assert all(sample.answer for sample in answered)
    dump(
        prepare_dump(load_recipe(path, ["data.train=answers.jsonl", "cache.path=second.zarr"]), progress=False),
        progress=False,
    )
    second = open_cache(str(workshop.directory / "second.zarr"))
    assert {sample.key for sample in answered} <= set(second)
    assert all(second[sample.key].hard for sample in answered)


def test_validation_rows_are_kept_apart(workshop):
    path, recipe, _ = dumped(workshop, mixed(workshop))
    out = workshop.directory / "held-out.jsonl"
    done = invoke("answers", recipe.cache_location, "--config", path, "--split", "validation", "--out", out)
    assert [row["id"] for row in read(out)] == ["s12", "s13"]
    assert "2 rows of validation.jsonl" in done.stdout


def test_a_file_that_exists_is_left_alone(workshop):
    path, recipe, _ = dumped(workshop, mixed(workshop, 6))
    out = workshop.directory / "mine.jsonl"
    out.write_text("mine")
    done = invoke("answers", recipe.cache_location, "--config", path, "--out", out, code=2)
    assert "mine.jsonl exists; give another name with --out" in done.stderr
    assert done.stderr.count("\n") == 1
    assert out.read_text() == "mine"


def test_cut_and_missing_and_skipped_rows_are_counted(workshop):
    rows = mixed(workshop, 10)
    rows[3]["messages"][0]["content"][1]["text"] = "what <|im_start|> is it"
    path, recipe, job = dumped(workshop, rows, on_error="skip", generate_max_tokens=2)
    cut = whole = 0
    cache = open_cache(recipe.cache_location)
    end = job.pair.student.end_of_turn_ids
    for sample in load_samples(recipe.source("train")):
        if sample.answer is None and sample.key in cache:
            ended = cache[sample.key].targets.target_ids.tolist()[-len(end) :] == end
            cut, whole = cut + (not ended), whole + ended
    assert cut
    more = workshop.rows(2, start=40, answered=False)
    with (workshop.directory / "data" / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    done = invoke("answers", recipe.cache_location, "--config", path)
    assert "1 row was skipped by the dump" in done.stderr
    assert "2 rows are not in the cache: new, edited or not dumped yet" in done.stderr
    cut_text = counted(cut, "answer was", "answers were")
    assert f"{cut_text} cut at the maximum length, and written" in done.stderr
    assert len(read(workshop.directory / "data" / "answers.jsonl")) == cut + whole
    out = workshop.directory / "whole.jsonl"
    more = {"code": 0 if whole else 2, "keep_cut": False}
    done = invoke("answers", recipe.cache_location, "--config", path, "--out", out, **more)
    assert f"{cut_text} cut at cache.generate_max_tokens (--keep-cut writes such answers" in done.stderr
    assert (len(read(out)) if whole else 0) == whole


def test_pictures_inside_the_data_stay_inside(workshop):
    rows = mixed(workshop, 6)
    file = workshop.directory / "data" / "0.png"
    rows[1]["images"] = ["data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()]
    path, recipe, _ = dumped(workshop, rows)
    out = workshop.directory / "elsewhere" / "answers.jsonl"
    invoke("answers", recipe.cache_location, "--config", path, "--out", out)
    first, second = read(out)
    assert first["images"][0].startswith("data:image/png;base64,")
    assert second["images"] == rows[3]["images"]
    samples = load_samples(load_recipe(path, [f"data.train={out}"]).source("train"))
    assert np.array_equal(np.array(samples[0].open_images()[0]), np.array(Image.open(file).convert("RGB")))


def test_earlier_turns_stay_as_they_are(workshop):
    rows = mixed(workshop, 6)
    talk = rows[1]["messages"]
    text = [{"type": "text", "text": "and now?"}]
    talk += [
        {"role": "assistant", "content": [{"type": "text", "text": "red lamp"}]},
        {"role": "user", "content": text},
    ]
    path, recipe, _ = dumped(workshop, rows)
    invoke("answers", recipe.cache_location, "--config", path)
    row = read(workshop.directory / "data" / "answers.jsonl")[0]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]
    assert row["messages"][:3] == talk
    assert [part["type"] for part in row["messages"][3]["content"]] == ["text"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows, _: [row["messages"].append(ANSWER) for row in rows if len(row["messages"]) == 1],
            "it was dumped without",
        ),
        (lambda _, arguments: arguments.insert(0, "nowhere.zarr"), "no cache at"),
        (
            lambda _, arguments: arguments.extend(["--set", "data.train=labelled.jsonl"]),
            "no answer by the teacher to write",
        ),
    ],
)
def test_what_has_no_answers_is_refused_in_one_line(workshop, change, said):
    rows = mixed(workshop, 6)
    arguments = []
    change(rows, arguments)
    labelled = [row for row in rows if len(row["messages"]) == 2]
    (workshop.directory / "data").mkdir(exist_ok=True)
    (workshop.directory / "data" / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    path = workshop.recipe(rows, cache=GENERATE if len(labelled) < len(rows) else {})
    recipe = load_recipe(path)
    dump(prepare_dump(recipe, progress=False), progress=False)
    cache = [] if arguments[:1] == ["nowhere.zarr"] else [recipe.cache_location]
    done = invoke("answers", *cache, *arguments, "--config", path, code=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((workshop.directory / "data").glob("*answers.jsonl*"))


ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
