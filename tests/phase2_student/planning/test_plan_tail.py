"""`fs-student plan` with a tail that has a shape; and what the loss takes by the plan, against the peak of a process."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from import_graph import ROOT
from run_cases import run
from transformers import Qwen2VLConfig

from firstsight.recipe import StudentSection, load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import CHUNK
from phase2_student.planning.footprint import MODES, HeadOfTeacher, TailOfCache, chunk_bytes, footprint, student_shape


def planned(world, *more):
    result = run("plan", "--config", world / "recipe.yaml", "--no-progress", "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_what_a_tail_adds():
    tail = TailOfCache(rows=151_936, rank=64)
    assert tail.weights == 151_936 * 65 * 4
    shape = student_shape(Qwen2VLConfig(), StudentSection(), activation_bytes=2)
    for mode in MODES:
        plain, shaped = (
            footprint(shape, mode, tokens=100, patches=0, gradient_checkpointing=True, whole=each, positions=80)
            for each in (None, tail)
        )
        assert shaped.targets == tail.weights + 80 * 64 * 4
        assert 2 * 4 * CHUNK * tail.rows <= shaped.loss - plain.loss <= 6 * 4 * CHUNK * tail.rows


def test_the_tail_is_that_of_the_cache_or_as_stated_and_not_counted_where_it_is_not_used(world):
    nothing = ("--set", "cache.path=none.zarr")
    assert planned(world)["tail"] is None
    stated = planned(world, *nothing, "--set", "cache.tail_rank=8")
    rows = stated["shape"]["rows"]
    assert stated["tail"] == {"rows": rows, "rank": 8}
    assert planned(world, *nothing, "--set", "cache.tail_rank=8", "--set", "loss.tail=bucket")["tail"] is None
    sets = ["cache.path=shaped.zarr", "cache.tail_rank=4"]
    dump(prepare_dump(load_recipe(world / "recipe.yaml", sets), progress=False), progress=False)
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["cache"] = {"path": "shaped.zarr"}
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = planned(world)
    assert found["tail"] == {"rows": rows, "rank": 4}
    positions = found["work"]["micro_batch"] * found["work"]["longest_answer"]
    assert all(way["targets"] == 4 * (rows * 5 + positions * 4) for way in found["footprints"])
    text = run("plan", "--config", world / "recipe.yaml", "--no-progress").output
    assert f"Targets     top_k with a tail of rank 4: its image of {rows:,} x 4, " in text
    assert " targets " in text.split("Memory of each GPU")[1]
    bucket = run("plan", "--config", world / "recipe.yaml", "--no-progress", "--set", "loss.tail=bucket").output
    assert "targets" not in bucket.split("Memory of each GPU")[1]


MEASURE = """
import json, sys
from benchmarks.loss import measure
from phase2_student.loss import fused
fused._BLOCK_ELEMENTS = 2**40  # a chunk at once, as on a GPU
print(json.dumps(measure(sys.argv[1], {N}, {D}, {V}, 16, {H}, {R}, 1)["bytes"]))
"""


@pytest.mark.parametrize(
    "variant",
    ["top_k forward_kl", "tail_rank forward_kl", *(f"exact {name}" for name in DIVERGENCES)],
)
def test_the_loss_takes_what_the_plan_estimates(variant):
    kind, name = variant.split()
    N, D, V, H, R = 300, 64, 24_000, 96, 16
    whole = {
        "top_k": None,
        "tail_rank": TailOfCache(rows=V, rank=R),
        "exact": HeadOfTeacher(rows=V, hidden=H, head_bytes=2, state_bytes=2),
    }[kind]
    code = MEASURE.format(N=N, D=D, V=V, H=H, R=R)
    done = subprocess.run(
        [sys.executable, "-c", code, variant],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed is given back
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = float(done.stdout)
    if not measured:
        assert os.environ.get("FIRSTSIGHT_CI") != "1", "VmHWM is not reported"
        pytest.skip("this system does not report the peak of a process")
    estimated = chunk_bytes(V, whole, DIVERGENCES[name]) + 4 * V * D  # and the gradient of the head
    assert 0.8 < measured / estimated < 1.1
