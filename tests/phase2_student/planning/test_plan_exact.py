"""`fs-student plan` with exact targets: the head, the states and the projection are counted."""

import json
import shutil

import pytest
from run_cases import run
from transformers import Qwen2VLConfig

from firstsight.recipe import StudentSection
from phase2_student.loss.fused import CHUNK
from phase2_student.planning.footprint import MODES, HeadOfTeacher, footprint, student_shape


def planned(world, *more):
    result = run("plan", "--config", world / "recipe.yaml", "--no-progress", "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_what_exact_targets_add():
    head = HeadOfTeacher(rows=151_936, hidden=3584, head_bytes=2, state_bytes=2)
    assert head.weights == 151_936 * 3584 * 2
    shape = student_shape(Qwen2VLConfig(), StudentSection(), activation_bytes=2)
    for mode in MODES:
        plain, exact = (
            footprint(shape, mode, tokens=100, patches=0, gradient_checkpointing=True, whole=each, positions=80)
            for each in (None, head)
        )
        assert plain.targets == 0
        assert exact.targets == head.weights + 80 * 3584 * 2
        distribution = 4 * CHUNK * head.rows
        assert 2 * distribution <= exact.loss - plain.loss <= 6 * distribution
        added = exact.total - plain.total
        assert added == pytest.approx(exact.targets + exact.loss - plain.loss) or added == pytest.approx(exact.targets)


def test_the_head_is_that_of_the_cache_or_of_the_teacher(exact_world):
    before = planned(exact_world, "--set", "cache.path=cache.zarr")
    assert before["teacher_head"] is None
    assert all(way["targets"] == 0 for way in before["footprints"])
    from_cache = planned(exact_world)
    assert from_cache["teacher_head"]["head_bytes"] == from_cache["teacher_head"]["state_bytes"] == 4
    longest = from_cache["work"]["longest_answer"]
    for way in from_cache["footprints"]:
        head = from_cache["teacher_head"]
        states = from_cache["work"]["micro_batch"] * longest * head["hidden"] * 4
        assert way["targets"] == head["rows"] * head["hidden"] * 4 + states
    shutil.rmtree(exact_world / "runs", ignore_errors=True)
    missing = ("--set", "cache.path=none.zarr")
    assert planned(exact_world, *missing, "--set", "cache.targets=exact")["teacher_head"] == from_cache["teacher_head"]
    assert planned(exact_world, *missing)["teacher_head"] is None
    assert planned(exact_world, "--set", "cache.targets=top_k")["teacher_head"] is None
    (exact_world / "models").unlink()
    shutil.copytree(
        (exact_world / "exact.zarr").resolve().parent / "models" / "student", exact_world / "models" / "student"
    )
    assert planned(exact_world)["teacher_head"] == from_cache["teacher_head"]
    nothing = run("plan", "--config", exact_world / "recipe.yaml", *missing, "--set", "cache.targets=exact")
    assert nothing.exit_code == 2
    assert "teacher.model" in nothing.stderr


def test_the_text_names_the_head(exact_world):
    text = run("plan", "--config", exact_world / "recipe.yaml", "--no-progress").output
    assert "Targets     exact: the teacher's head of " in text
    assert " targets " in text.split("Memory of each GPU")[1]
    without = run("plan", "--config", exact_world / "recipe.yaml", "--no-progress", "--set", "cache.path=cache.zarr")
    assert "targets" not in without.output.split("Memory of each GPU")[1]
