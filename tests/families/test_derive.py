"""One exact cache, students of several tokenizers: `fs-teacher derive` writes what a dump would have, and the teacher is gone."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import build
from world import fs_teacher, make_world, passes, run

from storage import open_cache
from storage.exact import open_exact_cache
from storage.format.v1.arrays import TAIL_STEP, VALUE_STEP
from storage.maintenance.verify import verify_cache
from storage.plan import PlannedSample
from storage.writer import create_cache

# the random teacher answers with line feeds alone; SmolVLM's template has a space before them, the teacher's has not
GENERATED = {"generate_missing": True, "generate_max_tokens": 6, "on_error": "skip"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An exact cache of a teacher, and the top_k caches that its dump writes for two students."""
    directory = tmp_path_factory.mktemp("world")
    # top_k is no key beside exact targets
    recipe = make_world(directory, "qwen2_vl", "smolvlm", cache={"unit_positions": 40, **GENERATED})
    build("qwen2_vl", directory / "same", seed=3)
    rows = (directory / "data" / "train.jsonl").read_text().splitlines()
    unanswered = json.loads(rows[0])
    unanswered["messages"] = unanswered["messages"][:1]
    unanswered["messages"][0]["content"][-1]["text"] = "Where am I?"
    (directory / "data" / "more.jsonl").write_text("\n".join([*rows, json.dumps(unanswered)]) + "\n")
    text = recipe.read_text()
    (directory / "exact.yaml").write_text(text.replace("  top_k: 16\n", "  targets: exact\n  path: exact.zarr\n"))
    more = "data.train=more.jsonl"
    passes(fs_teacher, "dump", "--config", directory / "exact.yaml", "--no-progress", "--set", more)
    for student in ("student", "same"):
        sets = ("--set", f"cache.path=dumped-{student}.zarr", "--set", f"student.model={student}", "--set", more)
        passes(fs_teacher, "dump", "--config", recipe, "--no-progress", *sets)
    shutil.move(directory / "teacher", directory / "away")
    shutil.move(directory / "data", directory / "data-away")
    return directory


@pytest.mark.parametrize("student", ["student", "same"])
def test_what_is_derived_is_what_a_dump_writes(world, student):
    location = world / f"derived-{student}.zarr"
    sets = ("--set", f"cache.path={location.name}", "--set", f"student.model={student}")
    command = (fs_teacher, "derive", world / "exact.zarr", "--config", world / "recipe.yaml", "--no-progress", *sets)
    shown = passes(*command)
    assert "Fidelity on" in shown
    dumped, derived = open_cache(world / f"dumped-{student}.zarr"), open_cache(location)
    assert derived.spec == dumped.spec
    assert set(derived.keys()) == set(dumped.keys())
    assert derived.skipped() == dumped.skipped() == {}
    soft = 0
    for key in dumped:
        one, other = dumped[key], derived[key]
        assert (one.hard, one.turns) == (other.hard, other.turns)
        for name in ("ids", "target_ids", "soft"):
            np.testing.assert_array_equal(getattr(one.targets, name), getattr(other.targets, name), err_msg=name)
        np.testing.assert_allclose(one.targets.logprobs, other.targets.logprobs, atol=VALUE_STEP + 1e-6)
        np.testing.assert_allclose(one.targets.tail, other.targets.tail, atol=TAIL_STEP + 1e-6)
        np.testing.assert_allclose(one.targets.target_logprobs, other.targets.target_logprobs, atol=2e-2)
        soft += int(one.targets.soft.sum())
    assert soft > 20
    assert any(not dumped[key].hard for key in dumped)
    assert verify_cache(location).ok()
    assert "Nothing to do" in passes(*command)


def test_a_derivation_is_shared_and_continued(world):
    sets = ("--set", "cache.path=shared.zarr", "--set", "student.model=same")
    command = ("derive", world / "exact.zarr", "--config", world / "recipe.yaml", "--no-progress", *sets)
    passes(fs_teacher, *command, "--shard", "1/2")
    digest = open_cache(world / "shared.zarr").digest
    manifest = sorted((world / "shared.zarr" / "manifests").glob("0*.json"))[0]
    manifest.unlink()
    passes(fs_teacher, *command, "--shard", "0/2")
    assert open_cache(world / "shared.zarr").digest == digest
    assert verify_cache(world / "shared.zarr").ok()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["cache.path=exact.zarr"], "exact.zarr holds exact targets"),
        (["teacher.dtype=bfloat16"], 'teacher.dtype: the cache has "float32", the request has "bfloat16"'),
        (["teacher.model=another"], 'teacher.model: the cache has "teacher", the request has "another"'),
        (["data.system_prompt=Be brief."], "teacher.system_prompt"),
        (["teacher.max_pixels=6000"], "teacher.image_processor.size.longest_edge"),
        (["cache.generate_max_tokens=7"], "generation.max_tokens: the cache has 6, the request has 7"),
        (["student.model=nowhere"], "student.model"),
        (["cache.top_k=60000"], "cache.top_k: expected at most "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(world, sets, message):
    options = [part for each in sets for part in ("--set", each)]
    command = ("derive", world / "exact.zarr", "--config", world / "recipe.yaml", "--no-progress")
    refused = run(fs_teacher, *command, "--set", "cache.path=refused.zarr", *options)
    assert refused.exit_code == 2, refused.output
    assert message in refused.output
    assert not (world / "refused.zarr").exists()


def test_the_other_kind_is_refused(world):
    config = ("--config", world / "recipe.yaml", "--no-progress")
    refused = run(fs_teacher, "derive", world / "dumped-same.zarr", *config)
    assert refused.exit_code == 2
    assert "holds top_k targets (top_k = 16), not exact" in refused.output
    refused = run(fs_teacher, "derive", world / "exact.zarr", "--config", world / "exact.yaml", "--no-progress")
    assert refused.exit_code == 2
    assert "cache.targets: exact: derive writes a top_k cache" in refused.output


def test_a_damaged_state_stops_it(world, tmp_path):
    shutil.copytree(world / "exact.zarr", tmp_path / "exact.zarr")
    chunk = next((tmp_path / "exact.zarr").glob("units/*/state_low/c.0.0"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    sets = ("--set", f"cache.path={tmp_path}/derived.zarr", "--set", "student.model=same")
    refused = run(
        fs_teacher, "derive", tmp_path / "exact.zarr", "--config", world / "recipe.yaml", "--no-progress", *sets
    )
    assert refused.exit_code == 2
    assert "state_low/c.0.0" in refused.output


def test_units_of_other_samples_are_left_to_whoever_planned_them(world):
    """A dump of other data into the same cache was interrupted: planned, not committed."""
    sets = ("--set", "cache.path=shared-with-others.zarr", "--set", "student.model=same")
    command = ("derive", world / "exact.zarr", "--config", world / "recipe.yaml", "--no-progress", *sets)
    location = world / "shared-with-others.zarr"
    writer = create_cache(location, open_cache(world / "dumped-same.zarr").spec)
    others = [PlannedSample(key=f"{number:064x}", positions=3) for number in range(2)]
    assert writer.plan(others, unit_positions=2) == 2
    held = len(open_exact_cache(world / "exact.zarr"))
    shown = passes(fs_teacher, *command)
    assert f"has 2 planned units with samples that {world / 'exact.zarr'} does not hold (the first is 0000" in shown
    assert "run the dump or the derivation that planned them again" in shown
    assert len(open_cache(location)) == held
    assert [unit.name for unit in writer.pending()] == [unit.name for unit in writer.units()[:2]]
    shown = passes(fs_teacher, *command)
    assert (
        f"Nothing to do: {location} holds everything in {world / 'exact.zarr'} except those units, {held} samples."
        in shown
    )
