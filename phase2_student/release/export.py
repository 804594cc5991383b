"""A student quantised by bitsandbytes, as a directory that `from_pretrained` loads.

    export(trained_student(recipe.output_dir), export_directory(recipe, "int8"), recipe.student, "int8")

Linear layers become LLM.int8 or NF4; the embedding, to which the student's head is tied, and the norms keep their dtype. Beside the
weights, `export.json` records which weights they were made from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from firstsight.errors import ModelError
from firstsight.models.loading import load_config, quantize, weights_digest
from firstsight.models.quantization import Quantization, stored_quantization, weight_bytes
from firstsight.recipe import StudentSection
from phase2_student.runs.exports import EXPORT
from phase2_student.runs.files import replace_directory, write_json

_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
_NOT_COPIED = {"config.json", EXPORT}
"""Not copied from the student: the export writes its own. The same holds for the index of sharded weights."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, or would be."""

    directory: Path
    before_bytes: int
    """Size of the source's weights."""
    paper_bytes: int
    """Size of the exported weights, computed from the configuration."""
    bytes: int | None
    """Size of the exported weights on disk; None if nothing was written."""


def plan_export(source: Path, output: Path, section: StudentSection, kind: Quantization) -> Export:
    """What `export` would write, from the configuration alone.

    Raises:
        ModelError: `source` holds no student or a quantised one, or `output` holds something else.
    """
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} has no config.json; train the student first, or pass its directory as --model")
    files = list(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source} has no .safetensors; weights are read from safetensors only")
    stored = stored_quantization(source)
    if stored is not None:
        raise ModelError(f"{source} is quantised already ({stored}); export the unquantised student")
    if output.resolve() == source.resolve():
        raise ModelError(f"{output} is the student itself; choose another --output")
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / EXPORT).is_file())):
        raise ModelError(f"{output} holds something that is not an export; choose another --output, or delete it")
    return Export(
        directory=output,
        before_bytes=sum(file.stat().st_size for file in files),
        paper_bytes=weight_bytes(load_config(source, section), kind, section),
        bytes=None,
    )


def export(source: Path, output: Path, section: StudentSection, kind: Quantization) -> Export:
    """Write the quantised student; an earlier export in `output` is replaced. Raises what `plan_export` raises."""
    plan = plan_export(source, output, section, kind)
    model = quantize(source, section, kind)

    def write(directory: Path | None) -> None:
        assert directory is not None  # this process writes
        for file in {path for pattern in _BESIDE_WEIGHTS for path in source.glob(pattern)}:
            if file.name not in _NOT_COPIED and not file.name.endswith(".index.json"):
                shutil.copyfile(file, directory / file.name)
        model.save_pretrained(directory)
        write_json(directory / EXPORT, {"quantization": kind, "weights": weights_digest(source), "source": source.name})

    output.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(output, write)
    written = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return Export(directory=output, before_bytes=plan.before_bytes, paper_bytes=plan.paper_bytes, bytes=written)
