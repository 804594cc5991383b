"""Caches with `cache.tail_rank` in phase 2: the shape by default, the bucket beside it, and what is refused."""

import pytest
import torch
import yaml
from run_cases import run

from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.loss.targets import ShapedTargets, StoredTargets
from phase2_student.training.prepare import prepare
from storage import open_cache

CPU = torch.device("cpu")


@pytest.fixture
def shaped_world(world):
    """`world` with a second cache beside its own, whose tail has a shape."""
    recipe = world / "recipe.yaml"
    sets = ["cache.path=shaped.zarr", "cache.tail_rank=8"]
    dump(prepare_dump(load_recipe(recipe, sets), progress=False), progress=False)
    text = yaml.safe_load(recipe.read_text())
    text["cache"]["path"] = "shaped.zarr"
    (world / "shaped.yaml").write_text(yaml.safe_dump(text))
    return world


def prepared(world, *overrides):
    return prepare(load_recipe(world / "shaped.yaml", overrides), progress=False)


def batch_of(plan):
    batch = plan.source.collator()([plan.train[0], plan.train[1], plan.train[-1]])
    return plan.source.completion(CPU)(batch)


def test_the_shape_is_the_default_and_the_bucket_beside_it(shaped_world):
    shaped, bucket = prepared(shaped_world), prepared(shaped_world, "loss.tail=bucket")
    assert "a tail of rank 8" in shaped.objective_text
    assert "one outcome" in bucket.objective_text
    one, other = batch_of(shaped).targets, batch_of(bucket).targets
    assert isinstance(one, ShapedTargets)
    assert isinstance(other, StoredTargets)
    read = one.chunk(slice(None))
    columns = one.shape.columns(other.ids_NK)
    assert torch.equal(read.log_p_NS.gather(1, columns)[other.soft_N], other.log_p_NK[other.soft_N])
    assert shaped.identity() != bucket.identity()
    assert shaped.identity() == prepared(shaped_world, "loss.tail=shape").identity()
    again = shaped.source.at(load_recipe(shaped_world / "shaped.yaml", ["loss.tail=bucket"]))
    assert again.tail_rank == 0


def test_a_cache_without_a_shape_is_bound_to_what_it_was(shaped_world):
    plain = prepared(shaped_world, "cache.path=" + load_recipe(shaped_world / "recipe.yaml").cache.path)
    identity = plain.identity()
    assert identity["loss.tail"] == "bucket"
    assert "tail" not in identity
    assert isinstance(batch_of(plain).targets, StoredTargets)


def test_train_and_evaluate(shaped_world):
    config = shaped_world / "shaped.yaml"
    sets = ("--set", "training.max_steps=2", "--set", "training.output_dir=runs/shaped")
    trained = run("train", "--config", config, "--no-progress", *sets)
    assert trained.exit_code == 0, trained.output
    assert "a tail of rank 8" in trained.output
    shown = run("eval", "--config", config, "--model", "student", "--no-progress", *sets)
    assert shown.exit_code == 0, shown.output
    assert "KL" in shown.output


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("cache.path=plain.zarr", "loss.tail=shape"), "loss.tail: shape"),
        (("cache.tail_rank=9",), "tail_rank"),
        (("cache.path=plain.zarr", "cache.tail_rank=8"), "tail_rank"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(shaped_world, sets, message):
    plain = load_recipe(shaped_world / "recipe.yaml").cache_location
    (shaped_world / "plain.zarr").symlink_to(plain)
    arguments = [part for each in sets for part in ("--set", each)]
    shown = run("train", "--config", shaped_world / "shaped.yaml", "--no-progress", *arguments)
    assert shown.exit_code == 2, shown.output
    assert message in shown.output
    assert "Traceback" not in shown.output


def test_a_sweep_over_the_kinds_of_cache_and_the_objective(shaped_world):
    sets = ("--set", "training.max_steps=1", "--set", "training.output_dir=runs/kinds")
    grid = ("--grid", "cache.path=cache.zarr,shaped.zarr", "--grid", "divergence=forward_kl,js")
    shown = run("sweep", "--config", shaped_world / "shaped.yaml", "--no-progress", *sets, *grid)
    assert shown.exit_code == 0, shown.output
    done = sorted(each.name for each in (shaped_world / "runs" / "kinds").iterdir() if each.is_dir())
    assert len(done) == 4
    compared = run("compare", shaped_world / "runs" / "kinds")
    assert compared.exit_code == 0, compared.output
    assert all(name in compared.output for name in done)
    refused = run("sweep", "--config", shaped_world / "shaped.yaml", "--grid", "cache.top_k=8,16")
    assert refused.exit_code == 2
    assert "cache.path" in refused.output


def test_a_damaged_image_stops_it(shaped_world):
    cache = open_cache(shaped_world / "shaped.zarr")
    image = next((shaped_world / "shaped.zarr" / "head").glob("*/image/c.0*"))
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 4
    image.write_bytes(data)
    assert len(cache)
    shown = run("train", "--config", shaped_world / "shaped.yaml", "--no-progress", "--set", "training.max_steps=1")
    assert shown.exit_code == 2
    assert "image" in shown.output
    assert "Traceback" not in shown.output


@pytest.mark.parametrize("sets", [(), ("loss.tail=bucket",)])
def test_targets_are_known_at_one_whatever_the_temperature(shaped_world, sets, monkeypatch):
    """For the KL of a validation: what the cache gives at T = 1."""
    at_t, at_one = (prepared(shaped_world, f"loss.temperature={T}", *sets) for T in (3, 1))
    got, want = batch_of(at_t).targets.at_one(3.0), batch_of(at_one).targets
    if not sets:
        assert got.temperature == 1
        got, want = got.stored, want.stored
    soft = want.soft_N
    assert torch.equal(got.log_r_N, want.log_r_N)
    torch.testing.assert_close(got.log_p_NK[soft], want.log_p_NK[soft], atol=2e-5, rtol=0)
    monkeypatch.setattr(type(at_t.train.cache), "temperatures", (1.25, 1.5, 2.0, 4.0))
    assert at_t.train[0].targets.log_r1_N is None
    assert batch_of(at_t).targets.at_one(3.0) is None
