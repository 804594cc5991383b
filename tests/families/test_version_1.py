"""A cache of format version 1 at the recipe's path: finished and grown in its own version, trained on, or refused in one line."""

import json

import numpy as np
from world import fs_student, fs_teacher, make_world, passes, run

from firstsight.recipe import load_recipe
from phase1_teacher.dump import prepare_dump
from storage import open_cache
from storage.maintenance.verify import verify_cache
from storage.writer import create_cache


def old_cache(recipe_file, path):
    """An empty cache of version 1, as the program before version 2 would have made it."""
    recipe = load_recipe(recipe_file, ["cache.path=planned.zarr"])
    spec = {**prepare_dump(recipe, progress=False).writer.spec, "format_version": 1}
    spec.pop("turns", None)
    create_cache(path, spec)


def test_an_old_cache_is_grown_and_trains_to_the_same_loss(tmp_path):
    recipe = make_world(
        tmp_path, "llama", "qwen2", data={"max_length": 1500, "turns": "last"}, cache={"unit_positions": 30}
    )
    old = tmp_path / "old.zarr"
    old_cache(recipe, old)
    config = ("--config", recipe, "--no-progress")
    rows = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    (tmp_path / "data" / "first.jsonl").write_text("\n".join(rows[:5]) + "\n")
    first = ("--set", "cache.path=old.zarr", "--set", "data.train=first.jsonl")
    passes(fs_teacher, "dump", *config, "--student", "none", *first)
    assert len(open_cache(old)) == 9
    manifests = sorted((old / "manifests").glob("0*.json"))
    manifests[0].unlink()  # one unit is left to finish
    shown = passes(fs_teacher, "dump", *config, "--student", "none", "--set", "cache.path=old.zarr")
    assert "The cache: 12 samples" in shown
    assert "format version 1" in passes(fs_teacher, "status", old)
    passes(fs_teacher, "dump", *config, "--student", "none")
    one, other = open_cache(old), open_cache(tmp_path / "cache.zarr")
    assert (one.spec["format_version"], other.spec["format_version"]) == (1, 2)
    assert set(one) == set(other)
    for key in one:
        for name, array in vars(one[key].targets).items():
            np.testing.assert_array_equal(array, getattr(other[key].targets, name))
    assert verify_cache(old).ok()
    losses = []
    for path, out in (("old.zarr", "run-old"), ("cache.zarr", "run-new")):
        passes(fs_student, "train", *config, "--set", f"cache.path={path}", "--set", f"training.output_dir={out}")
        history = json.loads((tmp_path / out / "training_history.json").read_text())
        losses.append([entry["validation"] for entry in history if entry.get("validation")])
    assert losses[0] == losses[1]
    assert losses[0]
    exact = tmp_path / "exact.yaml"
    exact.write_text(recipe.read_text().replace("  top_k: 16\n", "  targets: exact\n"))
    for command in (("dump", "--student", "none"), ("plan",)):
        refused = run(fs_teacher, *command, "--config", exact, "--no-progress", "--set", "cache.path=old.zarr")
        assert refused.exit_code == 2
        assert "old.zarr" in refused.output
        assert "cache.targets" in refused.output or "targets = 'exact'" in refused.output
        assert refused.output.count("Error:") == 1
