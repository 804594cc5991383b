"""Three forms of data through every command: check, plan, dump, plan, train; and a row that is skipped, named to the end."""

import csv
import json

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from firstsight.cli import main as firstsight
from firstsight.recipe import load_recipe
from phase1_teacher.cli import main as teacher
from phase2_student.cli import main as student
from storage.reader import open_cache

QUESTIONS = [
    ("What is this?", "A red lamp."),
    ("Where?", "Near the door."),
    ("How many?", "Two cups."),
    ("And now?", "It walks left."),
]


def llava(root, rows):
    made = [
        {
            "id": str(n),
            "image": image,
            "conversations": [{"from": "human", "value": f"<image>\n{q}"}, {"from": "gpt", "value": a}],
        }
        for n, (image, q, a) in enumerate(rows)
    ]
    (root / "train.json").write_text(json.dumps(made))
    return {"train": "train.json"}


def swift(root, rows):
    made = [
        {"query": f"<image>{q}", "response": a, "history": [["Hello", "Yes?"]], "images": [image]}
        for image, q, a in rows
    ]
    (root / "train.jsonl").write_text("\r".join(map(json.dumps, made)))
    return {"train": "train.jsonl"}


def table(root, rows):
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "ask", "label", "source"])
        writer.writerows([*row, "web"] for row in rows)
    return {
        "train": "train.csv",
        "columns": {"image": "file", "question": "ask", "answer": "label"},
        "ignore_columns": ["source"],
    }


def run(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("form", [llava, swift, table])
def test_a_form_from_check_to_training(tmp_path, models, form):
    rows = []
    for number in range(12):
        Image.effect_noise((56, 56), 60 + number).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", *QUESTIONS[number % 4]))
    rows.append(rows[0])
    if form is llava:
        Image.new("RGB", (1, 5000)).save(tmp_path / "thin.png")
        rows.append(("thin.png", "What is this?", "A line."))
    data = {"root": ".", "validation": "25%", "max_length": 256, **form(tmp_path, rows)}
    recipe = {
        "teacher": {"model": str(models / "teacher"), "quantization": "none", "dtype": "float32"},
        "student": {"model": str(models / "student"), "dtype": "float32"},
        "data": data,
        "cache": {"path": "c.zarr", "top_k": 16, "on_error": "skip"},
        "training": {
            "output_dir": "run",
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "report_to": "none",
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    config = ("--config", path, "--no-progress")
    checked = run(firstsight, "data", "check", *config, code=1 if form is llava else 0)
    assert ("1 fault; a row with a fault" in checked) == (form is llava)
    planned = run(teacher, "plan", *config)
    assert "1 of " in planned
    assert "repeats an earlier one" in planned
    assert ("sample cannot be used and is skipped" in planned) == (form is llava)
    assert ("have several answers" in planned) == (form is swift)
    run(teacher, "dump", *config)
    cache = open_cache(str(tmp_path / "c.zarr"))
    assert len(cache) == 12
    reasons = list(cache.skipped().values())
    if form is llava:
        assert "sample '13': the model's image processor refuses its images of 1 x 5000 pixels" in reasons[0]
        assert "except 1 that an earlier dump skipped" in run(teacher, "dump", *config)
    else:
        assert reasons == []
        assert "holds all 13 samples" in run(teacher, "dump", *config)
    assert ("1 sample cannot be used and is skipped" in run(student, "plan", *config)) == (form is llava)
    run(student, "train", *config)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["train_samples"] + facts["validation_samples"] == 13  # the repeated row counts twice
    assert facts["skipped_samples"] == len(reasons)
    assert load_recipe(path).data.share == 0.25
