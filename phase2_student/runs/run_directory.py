"""The directory of a run: what it was begun with, so that it is only continued as what it is.

    recipe.yaml  run.json  training_history.json  checkpoint-N/  best/  final/

`final/` is put in place last: a directory that has it is finished.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import firstsight
from firstsight.errors import RecipeError
from firstsight.recipe import LossSection, Recipe
from phase2_student.runs.checkpoints import checkpoints
from phase2_student.runs.files import write_json

RUN = "run.json"
_OWN = (
    "recipe.yaml",
    RUN,
    "training_history.json",
    "best",
    "best-int8",
    "best-nf4",
    "final",
    "evaluation",
    "error.txt",
    "report.html",
    "publish",
)
_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "torch-optimi", "zarr", "numpy")

_WITHOUT_EFFECT = {
    "output_dir", "report_to", "run_name", "project", "disable_tqdm", "save_strategy", "save_steps", "save_total_limit",
    "do_train", "do_eval", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
}  # fmt: skip
"""Keys of `training` that leave the weights as they are; the product of batch sizes is compared instead."""
_FIRST_LOSS_KEYS = ("temperature", "alpha", "tail")
"""Keys of `loss` that every run states; younger ones are left out at their defaults, so that older runs are continued."""
_PREFIXES_WITHOUT_EFFECT = ("logging_", "dataloader_", "log_", "hub_", "push_", "eval_", "trackio_")


def run_identity(
    recipe: Recipe, *, targets: dict[str, Any], sample_keys: Sequence[str], global_batch: int, seed: int
) -> dict[str, Any]:
    """What the weights of a run depend on, by dotted names; paths and machine settings are left out.

    Args:
        recipe: of the run.
        targets: the identity of the soft targets.
        sample_keys: of the training samples, in the order of the data file.
        global_batch: samples per optimiser step over all processes.
        seed: of the order of samples.
    """
    dumped = recipe.dump()
    training = {
        name: value
        for name, value in dumped["training"].items()
        if name not in _WITHOUT_EFFECT and not name.startswith(_PREFIXES_WITHOUT_EFFECT)
    }
    sections = {
        "student": {
            k: v
            for k, v in dumped["student"].items()
            if k not in ("trust_remote_code", "attn_implementation", "padding_free")
        },
        "data": {k: v for k, v in dumped["data"].items() if k in ("max_length", "system_prompt")},
        "loss": {
            k: v for k, v in dumped["loss"].items() if k in _FIRST_LOSS_KEYS or v != LossSection.model_fields[k].default
        },
        "training": {**training, "seed": seed},
    }
    identity = {f"{section}.{k}": v for section, values in sections.items() for k, v in values.items()}
    identity["global batch"] = global_batch
    identity.update(targets)
    identity["training samples"] = hashlib.sha256("\n".join(sample_keys).encode()).hexdigest()
    return identity


def check_run(output_dir: Path, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether the run in `output_dir` is finished already.

    Args:
        output_dir: of the run; need not exist.
        identity: of the run that is asked for.
        overwrite: delete what another or the same run left there.

    Raises:
        RecipeError: the directory holds the run of another recipe, with the differences; or files that are no run.
    """
    if overwrite:
        for path in [*checkpoints(output_dir), *(output_dir / name for name in _OWN)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    path = output_dir / RUN
    if not path.exists():
        if checkpoints(output_dir) or (output_dir / "final").exists():
            raise RecipeError(
                f"training.output_dir: {output_dir} holds checkpoints without a {RUN}, so they cannot be told to be of this "
                "recipe; choose another directory, or pass --overwrite"
            )
        return False
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"training.output_dir: {path} cannot be read; pass --overwrite to begin anew") from None
    differences = [
        f"  {name}: the run has {_shown(found.get(name))}, the recipe {_shown(identity.get(name))}"
        for name in sorted(found.keys() | identity.keys())
        if found.get(name) != identity.get(name)
    ]
    if differences:
        raise RecipeError(
            f"training.output_dir: {output_dir} holds the run of another recipe:\n"
            + "\n".join(differences)
            + "\nchoose another training.output_dir, or pass --overwrite"
        )
    return (output_dir / "final").is_dir()


def begin_run(output_dir: Path, recipe: Recipe, identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write what the run is: the recipe with its defaults, its identity, and where it was made."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe.dump(), sort_keys=False), encoding="utf-8")
    write_json(output_dir / RUN, {"identity": identity, **facts, **_provenance()})


def _provenance() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "firstsight": firstsight.__version__,
        "git_commit": _git_commit(Path(firstsight.__file__).parents[1]),
        "python": platform.python_version(),
        "versions": versions,
    }


def _git_commit(root: Path) -> str | None:
    """Commit of the source tree, `-dirty` where files of it were changed; None where it is no checkout."""
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
