"""The directory of a run: it records the run's settings, so that it is only continued with the same ones.

    recipe.yaml  run.json  training_history.json  checkpoint-N/  best/  final/

`final/` is written last: a run that has it is finished.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import firstsight
from firstsight.errors import RecipeError
from firstsight.recipe import LossSection, Recipe
from firstsight.secrets import masked
from phase2_student.runs.checkpoints import checkpoints
from phase2_student.runs.files import write_json
from phase2_student.runs.history import HISTORY
from phase2_student.runs.ownership import check_apart, check_new, remove_run

RUN = "run.json"
BOUND = "bound"
"""Key of `run.json`: what the run is bound to besides its identity, by name; older runs record none of it."""
VALIDATION = "validation samples"
"""Name in it: a digest, or `WITHOUT`."""
WITHOUT = "none"
_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "torch-optimi", "zarr", "numpy")

_WITHOUT_EFFECT = {
    "output_dir", "report_to", "run_name", "project", "disable_tqdm", "save_strategy", "save_steps", "save_total_limit",
    "do_train", "do_eval", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "torch_empty_cache_steps", "full_determinism", "include_num_input_tokens_seen", "metric_for_best_model", "greater_is_better",
}  # fmt: skip
"""Keys of `training` that change the weights only by rounding; of batch sizes the product is compared."""
_FIRST_LOSS_KEYS = ("temperature", "alpha", "tail")
"""Keys of `loss` that every run records. Newer keys are left out at their defaults, so that older runs can be continued."""
_PREFIXES_WITHOUT_EFFECT = ("logging_", "dataloader_", "log_", "hub_", "push_", "eval_", "trackio_", "ddp_")
_REFUSES_ONLY = {"data.max_length"}
"""Settings that older runs were bound to although they change no samples, only refuse some."""


def run_identity(
    recipe: Recipe,
    *,
    targets: dict[str, Any],
    sample_keys: Sequence[str],
    global_batch: int,
    seed: int,
    defaults: dict[str, Any],
) -> dict[str, Any]:
    """What the weights of a run depend on, by dotted names; paths and machine settings are left out.

    Args:
        recipe: the run's recipe.
        targets: the identity of the soft targets.
        sample_keys: keys of the training samples, in the order of the data file.
        global_batch: samples per optimiser step over all processes.
        seed: seed of the order of samples.
        defaults: defaults of the `training` section.
    """
    dumped = recipe.dump()
    if dumped["loss"].get("tail") in (None, "shape"):  # a tail with a shape is a part of the targets' identity
        dumped["loss"]["tail"] = "bucket"
    sections = {
        "student": {
            k: v
            for k, v in dumped["student"].items()
            if k not in ("trust_remote_code", "attn_implementation", "padding_free")
        },
        "data": {k: v for k, v in dumped["data"].items() if k in ("system_prompt",)},
        "loss": {
            k: v for k, v in dumped["loss"].items() if k in _FIRST_LOSS_KEYS or v != LossSection.model_fields[k].default
        },
        "training": {**dumped["training"], "seed": seed},
    }
    identity = {f"{section}.{k}": v for section, values in sections.items() for k, v in values.items()}
    identity["global batch"] = global_batch
    identity.update(targets)
    identity["training samples"] = hashlib.sha256("\n".join(sample_keys).encode()).hexdigest()
    return _effective(identity, defaults)


def _effective(identity: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """An identity without settings that change no weights, and without settings at their defaults."""
    kept = {}
    for dotted, value in identity.items():
        section, _, name = dotted.partition(".")
        if section == "training" and name != "seed":
            without_effect = name in _WITHOUT_EFFECT or name.startswith(_PREFIXES_WITHOUT_EFFECT)
            default = identity.get("training.seed") if name == "data_seed" else defaults.get(name)
            if without_effect or value == default or value is None:
                continue
        if dotted not in _REFUSES_ONLY:
            kept[dotted] = value
    return kept


def check_run(
    output_dir: Path,
    identity: dict[str, Any],
    *,
    bound: dict[str, str],
    defaults: dict[str, Any],
    cache_digest: str | None,
    recipe_directory: Path,
    overwrite: bool,
) -> bool:
    """Check that this run may begin or continue in `output_dir`; returns whether it is finished already.

    Args:
        output_dir: the run's directory; need not exist.
        identity: identity of the requested run.
        bound: what else it depends on, by name; compared with what the run recorded.
        defaults: defaults of the `training` section.
        cache_digest: digest of the whole cache as it is now, to which older runs were bound; None: no cache.
        recipe_directory: directory of the recipe, where no run may begin.
        overwrite: delete what this or another run wrote there, and nothing else.

    Raises:
        RecipeError: the directory holds the run of another recipe (lists the differences), or files that no run made.
    """
    check_apart(output_dir, recipe_directory)
    was_run = (output_dir / RUN).exists()
    if overwrite and (kept := remove_run(output_dir)):
        print(f"{output_dir}: kept, because no run made it: {', '.join(kept)}", file=sys.stderr)
    path = output_dir / RUN
    if not path.exists():
        if checkpoints(output_dir) or (output_dir / "final").exists():
            raise RecipeError(
                f"training.output_dir: {output_dir} holds checkpoints but no {RUN}, so whether they belong to this recipe is not "
                "known; choose another directory"
            )
        if not was_run:
            check_new(output_dir, recipe_directory)
        return False
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = dict(facts["identity"])
        recorded = dict(facts.get(BOUND, {}))
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"training.output_dir: {path} cannot be read; pass --overwrite to begin again") from None
    found = _effective(found, defaults)
    if "cache digest" in found and "targets digest" in identity:
        if found["cache digest"] != cache_digest:
            raise RecipeError(
                f"training.output_dir: the run in {output_dir} is from an older version that bound it to the whole cache, and the "
                "cache has grown since, so whether its targets are still the same is not known; choose another "
                "training.output_dir, or pass --overwrite"
            )
        del found["cache digest"]
        found["targets digest"] = identity["targets digest"]
    finished = (output_dir / "final").is_dir()
    if VALIDATION not in recorded and bound[VALIDATION] == WITHOUT and (output_dir / "best").is_dir() and not finished:
        recorded[VALIDATION] = "some"  # best/ would remain, and count as the student
    if finished:  # nothing is chosen by a validation any more
        recorded.pop(VALIDATION, None)
    found.update(recorded)
    wanted = {**identity, **{name: bound.get(name) for name in recorded}}
    differences = [
        f"  {name}: the run has {_shown(found.get(name))}, the recipe {_shown(wanted.get(name))}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    begun = [*checkpoints(output_dir), *(output_dir / name for name in ("best", "final", HISTORY))]
    if differences and any(path.exists() for path in begun):  # else it stopped before its first step
        raise RecipeError(
            f"training.output_dir: {output_dir} holds the run of another recipe:\n"
            + "\n".join(differences)
            + "\nchoose another training.output_dir, or pass --overwrite"
        )
    return finished


def begin_run(output_dir: Path, recipe: Recipe, identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the run's identity, the versions that it was made with, and the recipe with its defaults.

    `run.json` comes first, so that after a kill at any point the next call recognises the directory as its own.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / RUN, {"identity": identity, **facts, **_provenance()})
    content = masked(_as_used(recipe, str(identity.get("targets"))))
    (output_dir / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _as_used(recipe: Recipe, targets: str) -> dict[str, Any]:
    """The recipe with its defaults, without those that do not apply to the run's targets, so that it can be trained again."""
    content = recipe.dump()
    if targets == "exact":
        content["cache"] = recipe.cache.model_copy(update={"targets": "exact"}).effective()
    if targets != "cache":
        content["loss"].pop("tail", None)
    return content


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
    """Commit of the source tree, with `-dirty` if files were changed; None if it is no checkout."""
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
