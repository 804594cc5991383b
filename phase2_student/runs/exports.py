"""A run's student and its quantised exports: where they are, and of which weights the exports were made."""

from __future__ import annotations

import json
from pathlib import Path

from firstsight.errors import ModelError
from firstsight.models.loading import weights_digest
from firstsight.models.quantization import Quantization
from firstsight.recipe import Recipe

EXPORT = "export.json"
"""Beside the exported weights: the quantisation, and the digest of the weights that were quantised."""


def student_directory(output_dir: Path) -> Path:
    """Where the student of a run is, or would be: the best by validation loss; the last one where nothing was validated."""
    best, final = output_dir / "best", output_dir / "final"
    return final if final.is_dir() and not best.is_dir() else best


def export_directory(recipe: Recipe, kind: Quantization) -> Path:
    """Where the export of the recipe's student is, or would be."""
    source = student_directory(recipe.output_dir)
    return source.with_name(f"{source.name}-{kind}")


def check_export(directory: Path, source: Path) -> None:
    """Check that an export was made from the weights that are in `source` now.

    Raises:
        ModelError: it was made from others, or does not say from which.
    """
    try:
        exported_from = json.loads((directory / EXPORT).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{directory} has no readable {EXPORT}; run fs-student export again") from None
    if source.is_dir() and exported_from != weights_digest(source):
        raise ModelError(
            f"{directory} was exported from other weights than those in {source}; run fs-student export again"
        )
