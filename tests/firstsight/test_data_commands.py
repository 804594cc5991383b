"""firstsight data check, data convert and init: all faults at once, keys that stay, a recipe that runs."""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from firstsight.cli import main
from firstsight.data.samples import load_samples
from firstsight.recipe import load_recipe


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (400, 300), "blue").save(tmp_path / "b.jpg")
    made = [
        {
            "image": name,
            "conversations": [{"from": "human", "value": f"<image>{q}"}, {"from": "gpt", "value": "A cup."}],
            "category": "c",
        }
        for q, name in (("What?", "a.png"), ("Where?", "b.jpg"), ("What?", "a.png"))
    ]
    (tmp_path / "rows.json").write_text(json.dumps(made))
    return tmp_path / "rows.json"


def test_check_of_a_file_without_faults(rows):
    result = run("data", "check", rows, "--no-progress")
    assert result.exit_code == 0
    assert "Rows        3 (3 train)" in result.output
    assert "Images      3, from 40 x 30 to 400 x 300 pixels" in result.output
    assert "3  c" in result.output
    assert "1 of 3 train rows repeats an earlier one; each is trained on" in result.output
    assert result.output.endswith("No faults.\n")


def test_all_faults_at_once(rows, tmp_path):
    made = json.loads(rows.read_text())
    (tmp_path / "c.png").write_bytes(b"junk")
    bad = [
        {**made[0], "extra": 1},
        {**made[0], "image": "c.png"},
        {**made[0], "image": "none.png"},
        {**made[1], "image": "c.png"},
    ]
    rows.write_text("\n".join(map(json.dumps, [made[0], *bad[:2]])) + "\n{\n" + "\n".join(map(json.dumps, bad[2:])))
    result = run("data", "check", rows, "--no-progress")
    assert result.exit_code == 1
    faults = [line for line in result.output.splitlines() if line.startswith("Fault")]
    assert [line.split()[1].strip(":") for line in faults] == [f"rows.json:{n}" for n in (2, 3, 4, 5, 6)]
    assert "5 faults; a row with a fault is refused" in result.output
    report = json.loads(run("data", "check", rows, "--json").output)
    assert (report["lost"], report["fault_count"], len(report["faults"])) == (True, 5, 5)
    assert run("data", "check", rows, "--ignore-column", "extra", "--json").output.count("unknown key") == 0


def test_of_files_that_are_no_data(tmp_path):
    result = run("data", "check", tmp_path / "none.json", "--no-progress")
    assert result.exit_code == 1
    assert "none.json not found" in result.output
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no rows" in run("data", "check", tmp_path / "empty.jsonl", "--no-progress").output
    assert run("data", "check").exit_code == 2
    assert run("data", "check", tmp_path / "x", "--column", "a").exit_code == 2
    assert "no column 'a'" in run("data", "check", tmp_path / "x", "--column", "a=b").output


def test_check_of_a_recipe_knows_both_models(rows, models, tmp_path):
    made = json.loads(rows.read_text())
    for turn, value in ((0, "<image>" + "word " * 300), (0, "<image>a <|im_end|> b")):
        row = json.loads(json.dumps(made[1]))
        row["conversations"][turn]["value"] = value
        made.append(row)
    made.append({"conversations": [{"from": "human", "value": "No answer?"}]})
    Image.new("RGB", (1, 5000)).save(tmp_path / "thin.png")
    made.append({**made[0], "image": "thin.png"})
    rows.write_text(json.dumps(made))
    (tmp_path / "v.json").write_text(json.dumps(made[:1]))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"teacher: {{model: {models}/teacher, quantization: none}}\nstudent: {{model: {models}/student}}\n"
        "data: {root: ., train: rows.json, validation: v.json, max_length: 200}\ncache: {top_k: 16}"
    )
    result = run("data", "check", "--config", recipe, "--no-progress")
    assert result.exit_code == 1
    faults = "".join(line + "\n" for line in result.output.splitlines() if line.startswith("Fault"))
    for place, words in (
        (4, "more than data.max_length = 200"),
        (5, "has the control token <|im_end|>"),
        (6, "has no answer"),
    ):
        assert f"rows.json: row {place}" in faults
        assert words in faults
    assert "sample 'rows.json: row 7': the model's image processor refuses its images of 1 x 5000 pixels" in faults
    assert faults.count("\n") == 4
    assert "1 validation row is also in the training data (v.json: row 1)" in result.output
    assert run("data", "check", "--config", recipe, "--root", tmp_path).exit_code == 2


def test_convert_keeps_the_keys(rows, tmp_path):
    out = tmp_path / "out" / "train.jsonl"
    result = run("data", "convert", rows, out, "--no-progress")
    assert "3 rows, 2 images" in result.output
    before, after = load_samples(rows), load_samples(out)
    assert [sample.key for sample in after] == [sample.key for sample in before]
    assert [sample.id for sample in after] == [sample.id for sample in before]
    assert sorted(path.suffix for path in (tmp_path / "out" / "images").iterdir()) == [".jpg", ".png"]
    assert run("data", "convert", rows, out).exit_code == 2
    shutil.rmtree(tmp_path / "out")
    rows.write_text(json.dumps([{"messages": [{"role": "user", "content": "<image> in HTML"}]}]))
    assert "set data.format: trl" in run("data", "convert", rows, out, "--format", "trl", "--no-progress").output


def test_init_writes_a_recipe_that_is_read(rows, tmp_path):
    out = tmp_path / "deep" / "recipe.yaml"
    out.parent.mkdir()
    result = run("init", rows, "--out", out)
    assert result.exit_code == 0, result.output
    recipe = load_recipe(out)
    assert [path.resolve() for path in recipe.source("train").files] == [rows]
    assert recipe.source("validation").share == 0.05
    assert not recipe.cache.generate_missing
    assert run("init", rows, "--out", out).exit_code == 2
    rows.write_text('[{"question": "x"}]')
    out.unlink()
    assert run("init", rows, "--out", out).exit_code == 0
    assert load_recipe(out).cache.generate_missing
    rows.write_text('[{"question": "x", "y": 1}]')
    assert "lists them" in run("init", rows, "--out", tmp_path / "b.yaml").output
