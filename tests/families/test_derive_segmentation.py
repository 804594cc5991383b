"""A teacher whose tokens are all the student's, which joins more of them: what is derived is in the student's own segmentation."""

import shutil

import checkpoints
from checkpoints import build
from world import fs_student, fs_teacher, make_world, passes

from storage import open_cache


def test_ground_truth_is_derived_in_the_students_own_tokens(tmp_path, monkeypatch):
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    shutil.rmtree(tmp_path / "teacher")
    with monkeypatch.context() as patched:
        joined_less = checkpoints.byte_level
        patched.setattr(checkpoints, "byte_level", lambda special: joined_less(special, size=300))
        build("qwen2_vl", tmp_path / "teacher", seed=1, rows=48)
    text = recipe.read_text()
    (tmp_path / "exact.yaml").write_text(text.replace("  top_k: 16\n", "  targets: exact\n  path: exact.zarr\n"))
    config = ("--config", recipe, "--no-progress")
    passes(fs_teacher, "dump", "--config", tmp_path / "exact.yaml", "--no-progress")
    passes(fs_teacher, "dump", *config, "--set", "cache.path=dumped.zarr")
    passes(fs_teacher, "derive", tmp_path / "exact.zarr", *config, "--set", "cache.path=derived.zarr")
    dumped, derived = open_cache(tmp_path / "dumped.zarr"), open_cache(tmp_path / "derived.zarr")
    for key in dumped:
        assert dumped[key].targets.target_ids.tolist() == derived[key].targets.target_ids.tolist()
    passes(fs_student, "train", *config, "--set", "cache.path=derived.zarr")
