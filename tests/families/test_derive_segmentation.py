"""A tokenizer that joins less than the other: ground truth is in the student's own segmentation, cut answers end with a character."""

import shutil

import checkpoints
import numpy as np
from checkpoints import build
from world import fs_student, fs_teacher, make_world, passes

from firstsight.answer_alignment import AnswerAlignment, TeacherTokens
from firstsight.models.loading import head_rows, load_config
from firstsight.pair import load_prompter
from firstsight.recipe import DataSection, StudentSection
from storage import open_cache


def joining_less(patched, directory, **options):
    joined = checkpoints.byte_level
    patched.setattr(checkpoints, "byte_level", lambda special: joined(special, size=300))
    return build("qwen2_vl", directory, **options)


def test_an_answer_that_was_cut_inside_a_character_ends_before_it(tmp_path, monkeypatch):
    """Alike in a dump, in a derivation and in a training on exact targets: all of them ask these two methods."""
    directories = build("qwen2_vl", tmp_path / "teacher"), joining_less(monkeypatch, tmp_path / "student")
    teacher, student = (load_prompter(each, StudentSection(), DataSection()) for each in directories)
    rows = [head_rows(load_config(each, StudentSection())) for each in directories]
    answers = AnswerAlignment(TeacherTokens.of_prompter(teacher, rows[0]), student, student_rows=rows[1])
    whole = teacher.answer_ids("the kitchen \u00e9")[: -len(teacher.end_of_turn_ids)]
    cut = np.array(whole[:-1])
    ids = answers.student_ids(cut)
    assert student.tokenizer.decode(ids) == "the kitchen "
    found = answers.rows(cut, ids)
    assert found.max() == len(cut) - 2
    assert (found >= 0).sum() > 3


def test_ground_truth_is_derived_in_the_students_own_tokens(tmp_path, monkeypatch):
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    shutil.rmtree(tmp_path / "teacher")
    with monkeypatch.context() as patched:
        joining_less(patched, tmp_path / "teacher", seed=1, rows=48)
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
    exact = ("--config", tmp_path / "exact.yaml", "--no-progress", "--set", "training.output_dir=exact")
    passes(fs_student, "train", *exact)  # a recipe that states its targets
    assert "finished" in passes(fs_student, "train", *exact)
