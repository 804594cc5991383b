"""Whether the weights in a directory can be read, and whether they are those of the model that config.json describes.

    check_weight_files(directory)          # headers alone: seconds, no weights
    check_fit(directory, model, report)    # after loading: nothing may be left random

transformers fills weights that it does not find with random ones, and continues.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from firstsight.errors import ModelError
from storage.wording import counted

_POINTER = b"version https://git-lfs.github.com/"
_NAMED = 2
"""Names of weights in a message."""


def check_weight_files(directory: Path) -> None:
    """Read the header of every .safetensors file that the model uses: those of its index, or else all.

    Raises:
        ModelError: one is a Git LFS pointer, was cut, or is no safetensors file; or the directory holds an adapter.
    """
    if (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"{directory} holds an adapter (adapter_config.json), which is not applied; merge it (peft: merge_and_unload), save the whole "
            "model, and give that directory"
        )
    _stored_names(directory)


def _stored_names(directory: Path) -> list[str]:
    """Names of all stored weights; raises what `check_weight_files` raises for a file."""
    names: list[str] = []
    for file in _files(directory):
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise ModelError(
                    f"{file} is a Git LFS pointer, not the weights; run git lfs pull in {directory}, or download the file"
                )
        try:
            with safe_open(file, framework="pt") as opened:
                names += opened.keys()
        except SafetensorError as error:
            raise ModelError(
                f"{file} is damaged or was not downloaded whole, {file.stat().st_size:,} bytes ({_line(error)}); download it again"
            ) from None
    return names


def _files(directory: Path) -> list[Path]:
    """The files of the index if there is one: others may lie beside them, such as `consolidated.safetensors`."""
    index, files = directory / "model.safetensors.index.json", sorted(directory.glob("*.safetensors"))
    if (directory / "model.safetensors").is_file() or not index.is_file():
        return files
    try:
        used = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise ModelError(f"{index} is damaged; download it again") from None
    return [file for file in files if file.name in used]


def check_fit(directory: Path, model: Any, report: dict[str, Any]) -> None:
    """Check what transformers reports of a loaded model. Weights that the model does not use are named on standard error.

    Args:
        directory: of the weights.
        model: loaded from it.
        report: of `from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True)`; tied weights are not missing.

    Raises:
        ModelError: weights are missing, have another shape, or were not loaded.
    """
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"], key=lambda each: str(each[0]))
    if missing:
        total = len(model.state_dict())
        raise ModelError(
            f"{directory}: {len(missing):,} of the model's {counted(total, 'weight')} {'is' if len(missing) == 1 else 'are'} not in the "
            f"files ({_names(missing)}); {_reason(directory, model, missing)}"
        )
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{directory}: {counted(len(mismatched), 'weight has', 'weights have')} another shape than config.json says: {name} is "
            f"{_shape(stored)} in the files, expected {_shape(expected)}; config.json is not that of these weights: get both again from "
            "where the model came from"
        )
    if report["error_msgs"]:
        raise ModelError(f"{directory}: the weights cannot be loaded ({_line(report['error_msgs'][0])})")
    if unexpected:
        print(
            f"{directory}: {counted(len(unexpected), 'stored weight is', 'stored weights are')} not part of the model and not used "
            f"({_names(unexpected)})",
            file=sys.stderr,
        )


def _reason(directory: Path, model: Any, missing: list[str]) -> str:
    """Why weights may be missing, and what to do."""
    parts = zip(*(name.split(".") for name in _stored_names(directory)), strict=False)
    prefix = [each[0] for each in takewhile(lambda each: len(set(each)) == 1, parts)]
    own = {name.partition(".")[0] for name in model.state_dict()}
    if prefix and prefix[0] not in own:
        return (
            f"all names in the files begin with {'.'.join(prefix)!r}, as a wrapper writes them (peft, DDP, FSDP, torch.compile): save the "
            "model without its wrapper (peft: merge_and_unload) with save_pretrained"
        )
    if len(missing) == 1 and model.get_output_embeddings() is not None and missing[0].endswith("lm_head.weight"):
        return (
            "get the whole checkpoint again; if its head is tied to the embedding, config.json has to say so: "
            "tie_word_embeddings: true"
        )
    return "the checkpoint is incomplete or of another model: get all its files again, or save it with save_pretrained"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _shape(shape: Any) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "a number"


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:240]


@contextmanager
def without_report() -> Iterator[list[str]]:
    """Without transformers' table of what does not fit, which `check_fit` says in a line; yields the tables that were kept back."""
    logger = logging.getLogger("transformers.modeling_utils")
    tables: list[str] = []

    def other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        tables.append(text)
        return False

    logger.addFilter(other)
    try:
        yield tables
    finally:
        logger.removeFilter(other)


def cannot_be_loaded(directory: Path, error: Exception, tables: list[str]) -> ModelError:
    """The error of a directory for one of transformers, which may name the weights only in a table of `without_report`."""
    rows = [
        row.partition("|")[0].strip() for row in "".join(tables).splitlines() if re.search(r"\| *\S*CONVERSION", row)
    ]
    reason = f"the stored form of {_names(rows)} is incomplete or unknown" if rows else _line(error)
    return ModelError(f"{directory}: the weights cannot be loaded ({reason})")
