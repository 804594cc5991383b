"""Quantised exports of a run's student: where they are, and which weights they were made from."""

from __future__ import annotations

import json
from pathlib import Path

from firstsight.errors import ModelError
from firstsight.models.loading import weights_digest
from firstsight.models.quantization import Quantization
from firstsight.recipe import Recipe
from phase2_student.runs.best import trained_student

EXPORT = "export.json"
"""File beside the exported weights: the quantisation, and the digest of the weights that were quantised."""


def export_directory(recipe: Recipe, kind: Quantization) -> Path:
    """Where the export of the recipe's student is, or would be."""
    source = trained_student(recipe.output_dir)
    return source.with_name(f"{source.name}-{kind}")


def check_export(directory: Path, source: Path) -> None:
    """Check that an export was made from the weights that are in `source` now.

    Raises:
        ModelError: it was made from other weights, or does not record which.
    """
    try:
        exported_from = json.loads((directory / EXPORT).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{directory} has no readable {EXPORT}; run fs-student export again") from None
    if source.is_dir() and exported_from != weights_digest(source):
        raise ModelError(
            f"{directory} was exported from other weights than those in {source}; run fs-student export again"
        )
