"""docs/recipe.md is what docs/make_recipe.py writes, and every key of a recipe has a sentence, a default and a unit."""

import runpy
from pathlib import Path
from typing import get_args

import pytest

from firstsight.recipe_yaml import Unit

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "docs" / "make_recipe.py"))
INNER = [section for sections in MADE["INNER"].values() for _, section in sections]


def test_the_page_of_the_recipe_is_current():
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == MADE["page"](), "run make docs"


def numbers(annotation) -> bool:
    """Whether a key takes numbers."""
    return annotation in (int, float) or any(numbers(each) for each in get_args(annotation))


@pytest.mark.parametrize("section", [*MADE["SECTIONS"].values(), *INNER], ids=lambda section: section.__name__)
def test_every_key_has_a_sentence_and_every_number_a_unit(section):
    for name, field in section.model_fields.items():
        description = " ".join((field.description or "").split())
        assert description.endswith("."), f"{section.__name__}.{name} needs a docstring of whole sentences"
        assert "None" not in description, f"{section.__name__}.{name}: null is the word in YAML"
        if numbers(field.annotation):
            assert any(isinstance(each, Unit) and each.name for each in field.metadata), (
                f"{section.__name__}.{name}: unit"
            )


def test_every_section_is_on_the_page():
    page = MADE["page"]()
    assert {"teacher", "student", "data", "cache", "loss"} == set(MADE["SECTIONS"])
    for name, section in MADE["SECTIONS"].items():
        assert f"## `{name}`" in page
        for key in section.model_fields:
            assert f"| `{key}` |" in page, key
