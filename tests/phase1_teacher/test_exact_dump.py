"""Exact targets to the end of phase 1: the teacher's states bit by bit, its head, and what cannot be mixed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from firstsight.models.loading import load_teacher
from firstsight.models.teacher_head import SharedHead, floats
from firstsight.pair import load_teacher_pair
from firstsight.prompting import answer_index, collate
from phase1_teacher.cli import main as teacher
from phase1_teacher.dump import dump, prepare_dump
from storage.errors import CacheError
from storage.exact import open_exact_cache
from storage.maintenance.verify import verify_cache

EXACT = {"targets": "exact", "top_k": None}


def exact_recipe(workshop, rows, *, path="exact.zarr", dtype="bfloat16", **cache):
    """A recipe for exact targets; its student is not there."""
    recipe = workshop.recipe(
        rows,
        name="exact",
        teacher={"dtype": dtype},
        student={"model": str(workshop.directory / "nobody")},
        cache={"targets": "exact", "path": path, **cache},
    )
    text = recipe.read_text().replace("  top_k: 16\n", "")
    recipe.write_text(text)
    return recipe


def run(path):
    from firstsight.recipe import load_recipe

    job = prepare_dump(load_recipe(path), progress=False)
    return job, dump(job, progress=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_states_are_the_forward_passs_bit_by_bit(workshop, dtype):
    job, summary = run(exact_recipe(workshop, workshop.rows(9), dtype=dtype, unit_positions=1000))
    assert (summary.units, summary.samples) == (1, 9)
    cache = open_exact_cache(job.recipe.cache_location)
    model = load_teacher(job.pair.directory, job.recipe.teacher)
    assert cache.state_dtype == dtype
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for key in cache:
        sample = job.samples[key]
        encoded = job.pair.teacher.encode(sample)
        with torch.inference_mode():
            model(**collate([encoded], 0))
        found = cache[key]
        rows, columns = answer_index([encoded])
        own = seen.pop()[rows, columns]
        assert found.hard
        assert found.targets.target_ids.tolist() == encoded.target_ids.tolist()
        stored = torch.from_numpy(found.targets.states).view(own.dtype)
        # the batch of the dump is padded, so that a sum may be taken in another order: bits of a forward pass alone
        torch.testing.assert_close(stored, own, atol=0.05 if dtype != "float32" else 1e-4, rtol=0)
    assert verify_cache(job.recipe.cache_location).ok()
    head = cache.head()
    weight = model.get_output_embeddings().weight
    assert torch.equal(torch.from_numpy(head.array("weight")).view(weight.dtype), weight)
    assert head.tokens() == job.pair.answers.teacher.stored()
    assert next(cache.manifests()).head == head.digest


def test_the_bits_of_the_dumps_own_batches(workshop, monkeypatch):
    from phase1_teacher.forward import teacher as forward

    seen = []
    original = forward.backbone_states

    def recorded(model, inputs, rows, columns):
        seen.append(original(model, inputs, rows, columns))
        return seen[-1]

    monkeypatch.setattr(forward, "backbone_states", recorded)
    job, _ = run(exact_recipe(workshop, workshop.rows(8), unit_positions=1000))
    states = torch.cat(seen[1:])  # behind the self-check
    assert states.dtype == torch.bfloat16
    cache = open_exact_cache(job.recipe.cache_location)
    stored = np.concatenate([cache[key].targets.states for key in cache])
    rows = {row.tobytes() for row in states.view(torch.uint16).numpy()}
    assert len(stored) == len(states)
    assert {row.tobytes() for row in stored} == rows


def test_a_recipe_of_the_other_kind_is_refused_with_the_difference(workshop):
    rows = workshop.rows(6)
    exact = exact_recipe(workshop, rows, path="cache")
    top_k = workshop.recipe(rows, cache={"path": "cache"})
    shown = CliRunner().invoke(teacher, ["dump", "--config", str(exact), "--student", "none", "--no-progress"])
    assert shown.exit_code == 0, shown.output
    for command in ("dump", "plan"):
        refused = CliRunner().invoke(teacher, [command, "--config", str(top_k), "--no-progress"])
        assert refused.exit_code == 2
        assert "cache holds exact targets" in refused.output
        assert "top_k" in refused.output
        assert "use another cache" in refused.output
    other = workshop.recipe(rows, cache={"path": "other"})
    assert CliRunner().invoke(teacher, ["dump", "--config", str(other), "--no-progress"]).exit_code == 0
    for command in (["dump", "--student", "none"], ["plan"]):
        refused = CliRunner().invoke(
            teacher, [*command, "--config", str(exact), "--set", "cache.path=other", "--no-progress"]
        )
        assert refused.exit_code == 2
        assert "other holds top_k targets" in refused.output


def test_plan_status_and_show_know_exact_targets(workshop):
    rows = workshop.rows(6)
    recipe = exact_recipe(workshop, rows)

    def shown(*arguments):
        result = CliRunner().invoke(teacher, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    before = json.loads(shown("plan", "--config", recipe, "--json"))
    assert before["head_bytes"] > 0
    assert 1.38 * before["size"]["hidden"] < before["bytes_per_position"] < 1.5 * before["size"]["hidden"] + 11
    assert "exact targets;" in shown("plan", "--config", recipe, "--no-progress")
    out = shown("dump", "--config", recipe, "--student", "none", "--no-progress")
    assert "exact, hidden_size = " in out
    assert "Fidelity on" in out
    assert "this cache keeps the whole distribution, at any temperature" in out
    location = workshop.directory / "exact.zarr"
    after = json.loads(shown("plan", "--config", recipe, "--json"))
    assert (after["measured"], after["demand"]["present"]) == (True, 6)
    status = shown("status", location)
    assert "targets    exact, hidden_size" in status
    assert "; in all " in status
    cache = open_exact_cache(location)
    facts = json.loads(shown("status", location, "--json"))
    assert facts["head_bytes"] >= cache.head().nbytes
    text = shown("show", location, "--config", recipe, "--sample", "s2", "--temperature", 3)
    assert "s2" in text
    key = next(key for key in cache if len(cache[key].targets) > 1)
    assert f"key {key[:16]}" in shown("show", location, "--config", recipe, "--sample", key[:16], "--alternatives", 2)
    assert "Nothing to do" in shown("dump", "--config", recipe, "--student", "none", "--no-progress")


def test_the_teachers_own_answers(workshop):
    rows = workshop.rows(3, answered=False) + workshop.rows(3, start=3)
    recipe = exact_recipe(workshop, rows, generate_missing=True, generate_max_tokens=5)
    job, _ = run(recipe)
    cache = open_exact_cache(job.recipe.cache_location)
    assert cache.spec["generation"]["max_tokens"] == 5
    own = load_teacher_pair(job.recipe).alignment
    head = SharedHead.of_cache(cache, own, torch.device("cpu"))
    for key in cache:
        found = cache[key]
        assert found.hard == (job.samples[key].answer is not None)
        if not found.hard:
            logits = head.logits(floats(found.targets.states, torch.bfloat16))
            kept = [
                index
                for index in head.student_ids_S.tolist()
                if index not in job.pair.teacher.tokenizer.all_special_ids
            ]
            best = logits[:, torch.tensor(kept)].amax(dim=1)
            ids = torch.from_numpy(found.targets.target_ids.astype(np.int64))
            # greedy, but for ties within the rounding of the stock head
            assert (logits.gather(1, ids[:, None])[:, 0] >= best - 0.05).all()


def test_states_that_are_not_finite_are_named(workshop, monkeypatch):
    from phase1_teacher.forward import teacher as forward

    original = forward.backbone_states

    def broken(model, inputs, rows, columns):
        states = original(model, inputs, rows, columns)
        states[0] = torch.nan
        return states

    rows = workshop.rows(4)
    recipe = exact_recipe(workshop, rows)
    monkeypatch.setattr(forward.TeacherForward, "_self_check", lambda *_: None)
    monkeypatch.setattr(forward, "backbone_states", broken)
    refused = CliRunner().invoke(teacher, ["dump", "--config", str(recipe), "--student", "none", "--no-progress"])
    assert refused.exit_code == 2
    assert "logits are not finite" in refused.output
    run_again = CliRunner().invoke(
        teacher, ["dump", "--config", str(recipe), "--set", "cache.on_error=skip", "--student", "none", "--no-progress"]
    )
    assert run_again.exit_code == 0, run_again.output
    cache = open_exact_cache(workshop.directory / "exact.zarr")
    assert 0 < len(cache.skipped()) < 4


def test_a_teacher_in_another_type_is_refused(workshop):
    from firstsight.errors import ModelError
    from firstsight.recipe import load_recipe

    recipe = load_recipe(exact_recipe(workshop, workshop.rows(4)))
    job = prepare_dump(recipe, progress=False)
    model = load_teacher(job.pair.directory, recipe.teacher).float()
    with pytest.raises(ModelError, match=r"teacher: head: expected bfloat16 .* got float32"):
        dump(job, model=model, progress=False)


def test_a_missing_or_damaged_head_is_one_line(workshop):
    recipe = exact_recipe(workshop, workshop.rows(4))
    run(recipe)
    location = workshop.directory / "exact.zarr"
    chunk = next(Path(location, "head", "arrays", "weight").glob("c.*"))
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    cache = open_exact_cache(location)
    with pytest.raises(CacheError, match=r"weight/c\.0\.0.*the head cannot be used"):
        cache.head().array("weight")
    assert not verify_cache(location).ok()


def test_a_student_that_is_not_there_is_asked_for_or_left_out(workshop):
    recipe = exact_recipe(workshop, workshop.rows(4))
    refused = CliRunner().invoke(teacher, ["dump", "--config", str(recipe), "--no-progress"])
    assert refused.exit_code == 2
    assert "student.model: directory" in refused.output
    assert "--student none" in refused.output
    assert not (workshop.directory / "exact.zarr").exists()


@pytest.mark.parametrize("targets", ["exact", "top_k"])
def test_the_report_says_what_a_bucket_costs_the_students_gradient(workshop, targets):
    rows = workshop.rows(8)
    recipe = exact_recipe(workshop, rows) if targets == "exact" else workshop.recipe(rows)
    student = f"student.model={workshop.models / 'student'}"
    options = ["--config", str(recipe), "--set", student, "--set", "loss.temperature=3", "--no-progress"]
    shown = CliRunner().invoke(teacher, ["dump", *options])
    assert shown.exit_code == 0, shown.output
    assert re.search(
        r"entries and a bucket against the whole distribution's, for .*student as it is: off by ", shown.output
    )
    assert re.search(
        r"[\d.]+% at T = 1, [\d.]+% at T = 2, [\d.]+% at T = 3, [\d.]+% at T = 4 \(\d+ positions", shown.output
    )
    assert "Advice: at T = 3 the " in shown.output


def test_a_student_without_weights_is_said_and_not_downloaded(workshop):
    recipe = workshop.recipe(workshop.rows(6))
    bare = workshop.directory / "bare"
    shutil.copytree(workshop.models / "student", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    shown = CliRunner().invoke(
        teacher, ["dump", "--config", str(recipe), "--set", f"student.model={bare}", "--no-progress"]
    )
    assert shown.exit_code == 0, shown.output
    assert "was not measured: its weights are not on this machine" in shown.output
    assert "Advice: at T = 1 the 16 largest entries hold" in shown.output


def test_little_memory_halves_the_batches(workshop, monkeypatch):
    from phase1_teacher.forward.teacher import TeacherForward

    rows = workshop.rows(10)
    whole, _ = run(exact_recipe(workshop, rows, path="whole", dtype="float32"))
    states = TeacherForward._states

    def short(self, samples, *rest):
        if len(samples) * max(len(sample.encoded.input_ids) for sample in samples) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return states(self, samples, *rest)

    monkeypatch.setattr(TeacherForward, "_states", short)
    halved, summary = run(exact_recipe(workshop, rows, path="halved", dtype="float32"))
    assert summary.split_budget is not None
    one, other = (open_exact_cache(job.recipe.cache_location) for job in (whole, halved))
    assert set(one) == set(other)
    for key in one:
        found = [floats(cache[key].targets.states, torch.float32) for cache in (one, other)]
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert any(manifest.notes for manifest in other.manifests())
