"""docs/models.md is what docs/make_models.py writes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_models_is_current():
    made = runpy.run_path(str(ROOT / "docs" / "make_models.py"))
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == made["page"](), "run make docs"
