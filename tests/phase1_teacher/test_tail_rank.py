"""`cache.tail_rank` to the end of phase 1: the basis that whoever comes first makes, and what a dump, a derivation and a plan say."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_exact_dump import exact_recipe

from firstsight.models.tail_shape import TailShape
from firstsight.recipe import load_recipe
from phase1_teacher.cli import main as teacher
from phase1_teacher.dump import dump, prepare_dump
from storage import open_cache
from storage.maintenance.verify import verify_cache


def invoked(*arguments):
    return CliRunner().invoke(teacher, [str(each) for each in arguments])


def dumped(path, *sets):
    job = prepare_dump(load_recipe(path, list(sets)), progress=False)
    return job, dump(job, progress=False)


def test_a_dump_keeps_the_shape_and_a_derivation_writes_the_same(workshop):
    rows = workshop.rows(9)
    tail = workshop.recipe(rows, name="tail", cache={"path": "tail.zarr", "tail_rank": 8, "unit_positions": 24})
    plain = workshop.recipe(rows, name="plain", cache={"path": "plain.zarr", "unit_positions": 24})
    shown = invoked("dump", "--config", tail, "--no-progress")
    assert shown.exit_code == 0, shown.output
    assert "with the tail's shape" in shown.output
    dumped(plain)
    cache, without = open_cache(workshop.directory / "tail.zarr"), open_cache(workshop.directory / "plain.zarr")
    assert verify_cache(cache.location).ok()
    assert cache.tail_rank == 8
    assert not without.tail_rank
    assert {key: value for key, value in cache.spec.items() if key not in ("tail_rank", "hidden_size")} == without.spec
    for key in cache:  # the shape comes beside what is there without it
        one, other = cache[key].targets.arrays(), without[key].targets.arrays()
        coefficients = one.pop("tail_coefficients")
        assert (coefficients == np.rint(coefficients)).all()
        for name, array in other.items():
            np.testing.assert_array_equal(one[name], array, err_msg=name)
    exact = exact_recipe(workshop, rows, path="exact.zarr", dtype="bfloat16", unit_positions=24)
    dumped(exact)
    same = workshop.recipe(
        rows,
        name="same",
        teacher={"dtype": "bfloat16"},
        cache={"path": "dumped.zarr", "tail_rank": 8, "unit_positions": 24},
    )
    dumped(same)
    derived = invoked(
        "derive",
        workshop.directory / "exact.zarr",
        "--config",
        same,
        "--no-progress",
        "--set",
        "cache.path=derived.zarr",
    )
    assert derived.exit_code == 0, derived.output
    one, other = (open_cache(workshop.directory / name) for name in ("dumped.zarr", "derived.zarr"))
    assert one.spec == other.spec
    for name in ("image", "mean", "scale", "basis", "center"):
        np.testing.assert_array_equal(one.head().array(name), other.head().array(name), err_msg=name)
    for key in one:
        first, second = one[key].targets, other[key].targets
        np.testing.assert_array_equal(first.tail_coefficients, second.tail_coefficients)
        np.testing.assert_array_equal(first.ids, second.ids)


@pytest.mark.parametrize("rank", [1, 3, 32])
def test_more_directions_come_nearer_and_all_are_the_teachers_logits(workshop, rank):
    job, _ = dumped(workshop.recipe(workshop.rows(6), cache={"tail_rank": rank}))
    width = job.writer.layout.hidden_size
    cache = open_cache(job.recipe.cache_location)
    statistics = cache.statistics()
    assert statistics["fidelity_kl_shape_T2"] >= -1e-6
    shape = TailShape.of_cache(cache.head(), cache.shared_mask(), torch.device("cpu"))
    if rank < width:
        return
    for key in cache:  # with every direction the tail is the teacher's own, up to the quantised coordinates
        targets = cache[key].targets
        columns = shape.columns(torch.from_numpy(targets.ids.astype(np.int64)))
        logits = shape.logits(torch.from_numpy(targets.tail_coefficients)).gather(1, columns)
        own = torch.from_numpy(targets.logprobs)
        apart = (logits - logits[:, :1]) - (own - own[:, :1])
        assert apart.abs().max() < 0.15


def test_the_first_worker_decides_and_a_later_one_reads(workshop, monkeypatch):
    from phase1_teacher.forward import tail_basis

    rows = workshop.rows(8)
    recipe = workshop.recipe(rows, cache={"tail_rank": 4, "unit_positions": 20})
    made = []
    original = tail_basis.tail_content
    monkeypatch.setattr(tail_basis, "tail_content", lambda *given: made.append(1) or original(*given))
    job = prepare_dump(load_recipe(recipe), progress=False)
    units = job.writer.pending()
    assert len(units) > 1
    monkeypatch.setattr(type(job), "pending", property(lambda self: self.writer.pending()[:1]))
    dump(job, progress=False)
    digest = job.writer.head
    monkeypatch.undo()
    monkeypatch.setattr(tail_basis, "tail_content", lambda *given: made.append(1) or original(*given))
    again, _ = dumped(recipe)
    assert len(made) == 1
    assert again.writer.head == digest
    assert not again.pending


def test_what_does_not_go_is_one_line(workshop):
    rows = workshop.rows(4)
    wide = invoked("dump", "--config", workshop.recipe(rows, cache={"tail_rank": 1000}), "--no-progress")
    assert wide.exit_code == 2
    assert "cache.tail_rank: expected at most " in wide.output
    assert "Traceback" not in wide.output
    beside = exact_recipe(workshop, rows, tail_rank=4)
    refused = invoked("dump", "--config", beside, "--no-progress")
    assert refused.exit_code == 2
    assert "tail_rank" in refused.output
    assert "remove the key" in refused.output
    assert invoked("dump", "--config", workshop.recipe(rows, cache={"tail_rank": 4}), "--no-progress").exit_code == 0
    other = invoked("dump", "--config", workshop.recipe(rows, cache={"tail_rank": 5}), "--no-progress")
    assert other.exit_code == 2
    assert "tail_rank" in other.output


def test_plan_and_status_say_the_bytes(workshop):
    recipe = workshop.recipe(workshop.rows(6), cache={"tail_rank": 4})
    shown = invoked("plan", "--config", recipe, "--no-progress")
    assert shown.exit_code == 0, shown.output
    assert "tail_rank = 4" in shown.output
    planned = json.loads(invoked("plan", "--config", recipe, "--no-progress", "--json").output)["head_bytes"]
    job, _ = dumped(recipe)
    status = json.loads(invoked("status", job.recipe.cache_location, "--json").output)
    assert planned <= status["head_bytes"] <= planned + 8192
    assert status["field_bits"]["tail_coefficient"] > 0
