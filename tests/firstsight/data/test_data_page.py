"""docs/data.md: every row on it is read as it stands there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from firstsight.cli import main
from firstsight.data.entries import ListedDataset
from firstsight.data.samples import load_samples
from firstsight.data.source import FORMATS, DataSource
from firstsight.recipe import DataSection, load_recipe

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(json|csv)\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_every_row_of_the_page_is_read(tmp_path, kind, text):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (28, 28)).save(tmp_path / "images" / f"{name}.jpg")
    path = tmp_path / f"rows.{'csv' if kind == 'csv' else 'jsonl'}"
    path.write_text(text)
    (sample,) = load_samples(path)
    assert sample.answer
    assert len(sample.images) == text.count(".jpg")
    assert "<image>" not in sample.question


def test_the_dataset_info_of_the_page_is_read(tmp_path):
    (block,) = re.findall(r"```jsonc\n(.*?)```", PAGE, re.S)
    (tmp_path / "dataset_info.json").write_text(block)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (28, 28)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "rows.jsonl").write_text(next(text for _, text in BLOCKS if "messages" in text))
    entry = ListedDataset(dataset_info=tmp_path / "dataset_info.json", name="mllm_demo")
    (sample,) = load_samples(DataSource(files=(entry,), root=tmp_path))
    assert (sample.answer, len(sample.images)) == ("A cup.", 1)


def test_the_first_command_of_the_readme_on_own_data(tmp_path, monkeypatch):
    """As it is printed, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    commands = [
        line.split("#")[0].split()[1:]
        for line in readme.splitlines()
        if line.startswith("firstsight ") and "rows.json" in line
    ]
    assert [command[:2] for command in commands] == [["data", "check"], ["init", "rows.json"]]
    Path("rows.json").write_text(json.dumps([{"question": f"What is {n}?", "answer": "A number."} for n in range(60)]))
    for command in commands:
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    train, validation = (load_samples(source) for source in load_recipe(Path("own.yaml")).sources())
    assert len(train) + len(validation) == 60


def test_every_form_and_key_is_on_the_page():
    assert len(BLOCKS) > 12
    for name in FORMATS:
        assert f"`{name}`" in PAGE or f"format: {name}" in PAGE, name
    (section,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    keys = set(yaml.safe_load(section)["data"])
    assert keys == set(DataSection.model_fields) - {"max_length", "system_prompt"}
    DataSection.model_validate(yaml.safe_load(section)["data"])
