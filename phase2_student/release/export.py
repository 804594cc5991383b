"""A student quantised by bitsandbytes, as a directory that `from_pretrained` loads.

    export(recipe.output_dir / "best", export_directory(recipe, "int8"), recipe.student, "int8")

Linear layers become LLM.int8 or NF4; the embedding, to which the student's head is tied, and the norms keep their type. Beside the
weights lies `export.json`: of which weights they were made.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from firstsight.errors import ModelError
from firstsight.models import load_config, quantize, weights_digest
from firstsight.quantization import Quantization, stored_quantization, weight_bytes
from firstsight.recipe import Recipe, StudentSection
from phase2_student.runs.files import replace_directory, write_json

MARK = "export.json"
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
_NOT_COPIED = {"config.json", MARK}
"""And the index of sharded weights; what is written with the weights is not taken from the source."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, or would be."""

    directory: Path
    before_bytes: int
    """Weights of the source."""
    paper_bytes: int
    """Weights of the export as computed from the configuration."""
    bytes: int | None
    """Weights as written; None: nothing was."""


def export_directory(recipe: Recipe, kind: Quantization) -> Path:
    """Beside the recipe's best student."""
    return recipe.output_dir / f"best-{kind}"


def plan_export(source: Path, output: Path, section: StudentSection, kind: Quantization) -> Export:
    """What `export` would write, from the configuration alone.

    Raises:
        ModelError: no student in `source`, one that is quantised already, or an `output` that holds something else.
    """
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} has no config.json; train the student first, or give --model DIR")
    files = list(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source} has no .safetensors; weights are read from safetensors only")
    stored = stored_quantization(source)
    if stored is not None:
        raise ModelError(f"{source} is quantised already ({stored}); export from the unquantised student")
    if output.resolve() == source.resolve():
        raise ModelError(f"{output} is the student itself; give another --output")
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / MARK).is_file())):
        raise ModelError(f"{output} holds something that is no export; give another --output, or delete it")
    return Export(
        directory=output,
        before_bytes=sum(file.stat().st_size for file in files),
        paper_bytes=weight_bytes(load_config(source, section), kind, section),
        bytes=None,
    )


def export(source: Path, output: Path, section: StudentSection, kind: Quantization) -> Export:
    """Write the quantised student; an earlier export in `output` is replaced. Raises as `plan_export`."""
    plan = plan_export(source, output, section, kind)
    model = quantize(source, section, kind)

    def write(directory: Path | None) -> None:
        assert directory is not None  # one process, which writes
        for file in {path for pattern in _BESIDE_WEIGHTS for path in source.glob(pattern)}:
            if file.name not in _NOT_COPIED and not file.name.endswith(".index.json"):
                shutil.copy(file, directory / file.name)
        model.save_pretrained(directory)
        write_json(directory / MARK, {"quantization": kind, "weights": weights_digest(source), "source": source.name})

    output.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(output, write)
    written = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return Export(directory=output, before_bytes=plan.before_bytes, paper_bytes=plan.paper_bytes, bytes=written)


def check_current(directory: Path, source: Path) -> None:
    """That an export was made of the weights that are in `source` now.

    Raises:
        ModelError: it was made of others.
    """
    try:
        made_of = json.loads((directory / MARK).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{directory} has no readable {MARK}; run fs-student export again") from None
    if source.is_dir() and made_of != weights_digest(source):
        raise ModelError(
            f"{directory} was exported from other weights than those in {source}; run fs-student export again"
        )
