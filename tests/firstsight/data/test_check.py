"""The check of data: its figures, its picture, what both plans say of faults, and JPEGs that are decoded small."""

import io
import json
import random

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from firstsight.cli import main
from firstsight.data.check import DataReport, draw
from firstsight.data.compact import NumberSet
from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from firstsight.recipe import load_recipe
from phase1_teacher.cli import main as teacher
from phase2_student.cli import main as student
from phase2_student.training.prepare import prepare


def run(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def rows(tmp_path):
    """Rows with one to three answers, and pictures of two sizes."""
    made = []
    for number in range(6):
        Image.effect_noise((60 + number % 2, 56), 40 + number).convert("RGB").save(tmp_path / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cup."}]
        turns += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "No."}] * (number % 3)
        made.append({"id": f"r{number}", "image": f"{number}.jpg", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(made))
    return made


@pytest.mark.usefixtures("rows")
def test_figures_and_picture(tmp_path):
    found = json.loads(
        run(main, "data", "check", tmp_path / "rows.json", "--json", "--plot", tmp_path / "out" / "a.png")
    )
    assert found["answers_per_row"] == {"1": 2, "2": 2, "3": 2}
    assert found["answer_characters"] == {"least": 3, "p5": 3, "median": 4.5, "p95": 6, "most": 6, "mean": 4.5}
    assert (found["characters"]["least"], found["characters"]["most"]) == (11, 25)
    assert (found["longer_sides"]["least"], found["longer_sides"]["most"], found["images_decoded"]) == (60, 61, True)
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert picture.size == (1440, 432)
    headers = run(main, "data", "check", tmp_path / "rows.json", "--headers", "--no-progress")
    assert "only their headers were read" in headers
    assert "answers per row: 2 rows with 1, 2 rows with 2, 2 rows with 3" in headers


def test_a_picture_of_any_report_is_drawn(tmp_path):
    draw(DataReport(), tmp_path / "none.png")
    report = DataReport(tokens=True)
    report.lengths.extend([0, 1, 5, 100_000])
    report.answers.update({1: 3, 40: 1})
    report.add_picture((640, 480), several=False)
    draw(report, tmp_path / "some.png")


def write_recipe(tmp_path, models, **cache):
    recipe = {
        "teacher": {"model": str(models / "teacher"), "quantization": "none", "dtype": "float32"},
        "student": {"model": str(models / "student"), "dtype": "float32"},
        "data": {"root": ".", "train": "rows.json", "validation": "none", "max_length": 256},
        "cache": {"path": "c.zarr", "top_k": 16, **cache},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    return "--config", tmp_path / "r.yaml", "--no-progress"


def test_times_of_frames_are_noted(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    row = {"question": "What?", "answer": "A cup.", "frames": ["a.png", "b.png"]}
    (tmp_path / "rows.json").write_text(json.dumps([row, {**row, "times": [0, 1]}]))
    output = run(main, "data", "check", tmp_path / "rows.json")
    assert "1 row has times of frames: part of the sample's key, but shown to no model" in output
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert "times" not in run(main, "data", "check", tmp_path / "rows.json")


@pytest.mark.parametrize("command", [teacher, student])
def test_both_plans_name_all_faults_at_once(rows, tmp_path, models, command):
    Image.new("RGB", (1, 5000)).save(tmp_path / "thin.png")
    bad = [{**rows[0], "imagse": 1}, {**rows[1], "image": "thin.png"}, {"x": 1}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, *bad]))
    config = write_recipe(tmp_path, models)
    output = run(command, "plan", *config, code=2)
    assert "the data have 3 faults:" in output
    for words in ("row 7: the row has the unknown key 'imagse'", "images of 1 x 5000 pixels", "row 9: "):
        assert words in output
    assert "(the row's id is 'r0')" in output
    (tmp_path / "rows.json").write_text(json.dumps([*rows, bad[0]]))
    (line,) = run(command, "plan", *config, code=2).splitlines()
    assert "row 7: the row has the unknown key 'imagse'" in line
    (tmp_path / "rows.json").write_text(json.dumps([*rows, bad[1]]))
    skipping = write_recipe(tmp_path, models, on_error="skip")
    assert "1 sample cannot be used and is skipped" in run(command, "plan", *skipping)
    if command is student:  # what is skipped is not counted, in either split
        both = run(command, "plan", *skipping, "--set", "data.validation=rows.json")
        assert "6 to train on, 6 to validate" in both


def test_a_row_with_a_fault_counts_once_beside_a_share_for_validation(rows, tmp_path, models):
    many = [{**row, "id": f"{row['id']} {copy}"} for copy in range(4) for row in rows]
    for number, row in enumerate(many):  # different contents, so that both sides have some
        row["conversations"] = [{**turn, "value": f"{turn['value']} {number}"} for turn in row["conversations"]]
    lost = {**rows[0], "image": "gone.jpg"}
    (tmp_path / "rows.json").write_text(json.dumps([*many, lost]))
    skipping = (*write_recipe(tmp_path, models, on_error="skip"), "--set", "data.validation=20%")
    assert "\n1 fault;" in run(main, "data", "check", *skipping, code=1)
    for command in (teacher, student):
        assert "1 sample cannot be used and is skipped" in run(command, "plan", *skipping)
    assert "1 sample is left out (cache.on_error: skip):" in run(teacher, "dump", *skipping)
    plan = prepare(load_recipe(tmp_path / "r.yaml", ["data.validation=20%"]), progress=False)
    assert plan.facts()["skipped_samples"] == 1
    assert len(plan.validation) > 0
    left_out = []
    load_samples(load_recipe(tmp_path / "r.yaml", ["data.validation=20%"]).source("validation"), left_out=left_out)
    assert len(left_out) == 1  # read alone, as an evaluation does, the share tells it

    (tmp_path / "rows.json").write_text(json.dumps([*many, {**rows[0], "colour": 1}, {"x": 1}]))
    assert "\n2 faults;" in run(main, "data", "check", *skipping, code=1)
    assert "the data have 2 faults:" in run(teacher, "plan", *skipping, code=2)
    (tmp_path / "rows.json").write_text("[]")
    assert "\n1 fault;" in run(main, "data", "check", *skipping, code=1)
    (tmp_path / "rows.json").unlink()
    assert "\n1 fault;" in run(main, "data", "check", *skipping, code=1)


def test_a_share_without_rows_is_a_fault_of_the_check_as_of_the_run(rows, tmp_path, models):
    (tmp_path / "rows.json").write_text(json.dumps(rows[:1]))
    config = (*write_recipe(tmp_path, models, on_error="skip"), "--set", "data.validation=0.001%")
    assert "falls into this split" in run(main, "data", "check", *config, code=1)
    (tmp_path / "rows.json").write_text(json.dumps([{**rows[0], "image": "gone.jpg"}]))
    report = run(main, "data", "check", *config, code=1)
    assert "falls into this split" not in report
    assert "\n1 fault;" in report
    validation = load_recipe(tmp_path / "r.yaml", ["data.validation=0.001%"]).source("validation")
    with pytest.raises(DataError, match=r"none of the 1 row can be used; the first: .*gone\.jpg"):
        load_samples(validation)


NOTE = "no row has a column 'topik' (data.columns: category), so it has no effect; did you mean 'topic'?"


def test_a_column_that_no_row_has_is_noted_once_by_check_plans_and_dump(tmp_path, models):
    row = {"question": "What?", "answer": "A cup.", "topic": None, "web": None}
    other = {"question": "Who?", "answer": "Kane.", "source": "x"}
    (tmp_path / "rows.json").write_text(json.dumps([row] * 3))
    (tmp_path / "more.json").write_text(json.dumps([other]))
    names = (
        "data.columns={category: topik}",
        "data.ignore_columns=[source, web, 'Unnamed: 0']",
        "data.validation=more.json",
    )
    config = (*write_recipe(tmp_path, models), *(each for name in names for each in ("--set", name)))
    unnamed = "no row has a column 'Unnamed: 0' (data.ignore_columns), so it has no effect"
    for command in (
        (main, "data", "check"),
        (teacher, "plan"),
        (student, "plan"),
        (teacher, "dump"),
    ):
        output = run(*command, *config)
        assert output.count("no row has a column") == 2, output
        assert output.count(NOTE) == 1
        assert output.count(f"{unnamed}\n") == 1
    # a column of either split counts, and null is a value like another
    right = ("data.columns={category: topic}", "data.ignore_columns=[source, web]", "data.validation=more.json")
    config = (*write_recipe(tmp_path, models), *(each for name in right for each in ("--set", name)))
    assert "no row has" not in run(main, "data", "check", *config)
    alone = run(main, "data", "check", tmp_path / "rows.json", "--column", "category=topic", "--ignore-column", "sauce")
    assert alone.count("no row has a column 'sauce' (data.ignore_columns)") == 1
    assert (
        "no row has"
        in json.loads(
            run(
                main,
                "data",
                "check",
                tmp_path / "rows.json",
                "--ignore-column",
                "web",
                "--ignore-column",
                "x",
                "--json",
            )
        )["notes"][-1]
    )


def test_a_damaged_jpeg_is_found_whichever_size_is_made():
    """An eighth of the rows and columns is made of what is read and decoded whole."""
    draws = random.Random(0)
    noise = np.random.default_rng(0)
    refused = 0
    for mode, options in (
        ("RGB", {}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"quality": 95}),
    ):
        buffer = io.BytesIO()
        shape = (50, 61) if mode == "L" else (50, 61, len(mode))
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8), mode=mode).save(buffer, "JPEG", **options)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            place = draws.randrange(len(data))
            if draws.random() < 0.5:
                data = data[:place]
            else:
                data[place] ^= 1 << draws.randrange(8)
            whole, small = decodes(bytes(data), draft=False), decodes(bytes(data), draft=True)
            assert whole == small
            refused += not whole
    assert 60 < refused < 160


def decodes(data, *, draft):
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if draft:
                picture.draft(picture.mode, (1, 1))
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def test_numbers_are_held_each_once():
    numbers = [random.Random(n).getrandbits(64) for n in range(20_000)]
    found = NumberSet()
    assert all(found.add(number) for number in numbers)
    assert not any(found.add(number) for number in numbers)
    assert all(number in found for number in numbers)
    assert not any((number ^ 1) in found for number in numbers)


def test_options_of_a_file_stand_in_the_recipe_that_init_writes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "qa.csv").write_text("ask,say,source\nWhat?,A cup.,web\nWho?,Kane.,web\n")
    options = ("--column", "question=ask", "--column", "answer=say", "--ignore-column", "source")
    run(main, "init", tmp_path / "in" / "qa.csv", "--out", tmp_path / "r.yaml", *options)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.data.columns, recipe.data.ignore_columns) == ({"question": "ask", "answer": "say"}, ("source",))
    assert recipe.source("train").files[0].samefile(tmp_path / "in" / "qa.csv")


@pytest.mark.usefixtures("rows")
def test_a_dataset_info_on_the_command_line(tmp_path):
    info = {
        "demo": {
            "file_name": "rows.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "images": "image"},
        }
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    file = tmp_path / "dataset_info.json"
    assert "choose one with --name" in run(main, "data", "check", file, code=2)
    assert "No faults" in run(main, "data", "check", file, "--name", "demo", "--no-progress")
    assert "6 rows, 6 images" in run(
        main, "data", "convert", file, tmp_path / "out" / "t.jsonl", "--name", "demo", "--no-progress"
    )
    run(main, "init", file, "--name", "demo", "--out", tmp_path / "deep" / "r.yaml")
    recipe = load_recipe(tmp_path / "deep" / "r.yaml")
    assert recipe.data.train.name == "demo"
    assert run(main, "data", "check", tmp_path / "rows.json", "--split", "train", code=2).count("hub:") == 1
    assert "use --subset" in run(main, "data", "check", "hub:org/name", "--name", "demo", code=2)
