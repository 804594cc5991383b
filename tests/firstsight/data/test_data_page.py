"""docs/data.md: every row on it is read as it stands there."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from firstsight.data.samples import load_samples
from firstsight.data.source import FORMATS
from firstsight.recipe import DataSection

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


def test_every_form_and_key_is_on_the_page():
    assert len(BLOCKS) > 12
    for name in FORMATS:
        assert f"`{name}`" in PAGE or f"format: {name}" in PAGE, name
    (section,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    keys = set(yaml.safe_load(section)["data"])
    assert keys == set(DataSection.model_fields) - {"max_length", "system_prompt"}
    DataSection.model_validate(yaml.safe_load(section)["data"])
