"""Exact caches in phase 2: what is read when, what is refused, what a run is bound to, and students of other vocabularies."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from run_cases import run
from test_data_workers import assert_same
from torch.utils.data import DataLoader

from firstsight.data.samples import load_samples
from firstsight.errors import AlignmentError, DataError, RecipeError
from firstsight.pair import load_pair
from firstsight.recipe import load_recipe
from phase2_student.data.exact import ExactSource
from phase2_student.data.order import GlobalBatches
from phase2_student.training.prepare import prepare
from storage.errors import CorruptObject, SpecMismatch
from storage.exact import open_exact_cache
from storage.store.local import LocalStore
from storage.wording import counted

CPU = torch.device("cpu")


@pytest.fixture
def read(monkeypatch):
    """Paths of a cache's objects, as they are read."""
    paths = []
    original = LocalStore.read

    def recorded(self, path, *, limit):
        paths.append(path)
        return original(self, path, limit=limit)

    monkeypatch.setattr(LocalStore, "read", recorded)
    return paths


def prepared(world, *overrides):
    return prepare(load_recipe(world / "recipe.yaml", overrides), progress=False)


def test_preparing_reads_no_state_and_no_row_of_the_head(exact_world, read):
    plan = prepared(exact_world)
    assert isinstance(plan.source, ExactSource)
    assert not [path for path in read if "/state_" in path or path.startswith("head/arrays/weight")]
    plan.train[0]
    assert [path for path in read if "/state_" in path]
    assert not [path for path in read if path.startswith("head/arrays/weight")]
    plan.source.completion(CPU)
    assert [path for path in read if path.startswith("head/arrays/weight/c.")]


def test_batches_are_those_of_the_teacher_in_memory(exact_world):
    recipe = load_recipe(exact_world / "recipe.yaml")
    exact, online = prepare(recipe, progress=False), prepare(recipe, online=True, progress=False)
    assert exact.train.lengths() == online.train.lengths()
    assert (exact.source.shared_mask() == online.source.shared_mask()).all()
    one, two = (
        plan.source.completion(CPU)(plan.source.collator()([plan.train[i] for i in (0, 3, ~1)]))
        for plan in (exact, online)
    )
    assert_same(one.inputs, two.inputs)
    for name in ("target_ids_N", "soft_N", "hard_N"):
        assert torch.equal(getattr(one.targets, name), getattr(two.targets, name))
    torch.testing.assert_close(one.targets.states_ND, two.targets.states_ND, rtol=1e-5, atol=1e-5)
    a, b = one.targets.chunk(slice(0, 9)), two.targets.chunk(slice(0, 9))
    assert torch.equal(a.shared_ids_S, b.shared_ids_S)
    torch.testing.assert_close(a.log_p_NS, b.log_p_NS, rtol=1e-5, atol=1e-5)


def test_workers_give_the_same_batches(exact_world):
    plan = prepared(exact_world, "cache.scratch=fast", "cache.memory=1 B")
    options = {
        "batch_sampler": GlobalBatches(plan.train.lengths(), batch_size=4, seed=1),
        "collate_fn": plan.source.collator(),
    }
    alone = list(DataLoader(plan.train, **options))
    shared = list(DataLoader(plan.train, num_workers=2, multiprocessing_context="fork", **options))
    for one, two in zip(alone, shared, strict=True):
        assert_same(one, two)
    assert list((exact_world / "fast").glob("*.states"))
    spawned = pickle.loads(pickle.dumps(plan.train))  # as a spawned worker gets it
    assert_same(
        plan.source.collator()([spawned[0], spawned[5]]), plan.source.collator()([plan.train[0], plan.train[5]])
    )


def test_memory_is_bounded(exact_world):
    plan = prepared(exact_world, "cache.memory=100 kB")
    largest = 0
    for index in range(len(plan.train)):
        plan.train[index]
        largest = max(largest, plan.source.cache._held.bytes)
    assert 50_000 < largest <= 100_000


def refused(world, *more):
    result = run("train", "--config", world / "recipe.yaml", "--no-progress", *more)
    assert result.exit_code == 2, (result.output, result.exception)
    assert not (world / "runs").exists()
    return result.stderr


def test_a_recipe_that_states_another_kind_is_refused_with_the_difference(exact_world):
    error = refused(exact_world, "--set", "cache.targets=top_k")
    assert 'targets: the cache has "exact", the request has "top_k"' in error
    assert "1 difference" in error
    error = refused(exact_world, "--set", "cache.path=cache.zarr", "--set", "cache.targets=exact")
    assert 'targets: the cache has "top_k", the request has "exact"' in error
    assert "1 difference" in error


def test_a_key_of_top_k_caches_is_refused(exact_world):
    error = refused(exact_world, "--set", "cache.top_k=32", "--set", "cache.temperatures=[1, 2, 3]")
    assert "top_k: the cache has (absent), the request has 32" in error
    assert "temperatures: the cache has (absent)" in error


@pytest.mark.parametrize(("tail", "stated"), [("bucket", False), ("renormalize", True)])
def test_a_tail_is_refused_by_name(exact_world, tail, stated):
    more = ["--set", "cache.targets=exact"] if stated else []
    error = refused(exact_world, "--set", f"loss.tail={tail}", *more)
    assert error.count("\n") == 1
    assert "loss.tail:" in error
    assert "whole distributions" in error
    assert "remove the key" in error


def test_a_tail_is_refused_beside_the_teacher_in_memory_and_in_a_grid(exact_world):
    assert "loss.tail: the teacher in memory gives whole" in refused(exact_world, "--online", "--set", "loss.tail=none")
    plan = prepared(exact_world)
    other = load_recipe(exact_world / "recipe.yaml", ["loss.tail=none"])
    with pytest.raises(RecipeError, match=r"loss\.tail"):
        prepare(other, progress=False, like=plan)


def test_what_the_recipe_states_of_the_teacher_is_compared(exact_world):
    error = refused(exact_world, "--set", "data.system_prompt=Be brief.", "--set", "teacher.model=models/other")
    assert 'teacher.system_prompt: the cache has null, the request has "Be brief."' in error
    assert "teacher.model" in error


def test_a_student_of_other_tokens_or_another_head_is_none_of_the_caches_business(exact_world):
    from transformers import AutoTokenizer

    other = shutil.copytree(exact_world / "models" / "student", exact_world / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    before, after = prepared(exact_world), prepared(exact_world, "student.model=other")
    assert after.source.shared_mask().sum() == before.source.shared_mask().sum()


def test_a_vocabulary_without_a_common_token_is_refused(exact_world, monkeypatch):
    monkeypatch.setattr("firstsight.answer_alignment.token_table", lambda _: {5: (b"\0\0nothing\0", False)})
    assert "share no token" in refused(exact_world)


def test_what_is_dropped_is_shown(exact_world):
    assert prepared(exact_world).source.note == "exact targets"
    recipe = load_recipe(exact_world / "recipe.yaml")
    answers = load_pair(recipe).answers
    vocabulary = answers.vocabulary
    lost = vocabulary.teacher_of_student.copy()
    lost[np.flatnonzero(lost >= 0)[:3]] = -1
    object.__setattr__(vocabulary, "teacher_of_student", lost)
    cache = open_exact_cache(exact_world / "exact.zarr")
    note = ExactSource(cache, answers.student, rows=len(lost), temperature=1.0, answers=answers).note
    tokens = int(vocabulary.teacher_tokens.sum())
    assert (
        note
        == f"exact targets over the {tokens - 3:,} of the teacher's {tokens:,} tokens that the student has, the others dropped"
    )


def test_a_run_is_bound_to_its_own_samples_and_to_the_students_alignment(exact_world):
    plan = prepared(exact_world)
    keys = [key for key, _ in plan.train.samples]
    identity = plan.source.identity(keys)
    assert identity["targets"] == "exact"
    assert identity["targets digest"] == plan.source.cache.digest_of_samples(keys)
    assert identity["alignment"] == plan.source.answers.vocabulary.digest
    vocabulary = plan.source.answers.vocabulary
    fewer = vocabulary.teacher_of_student.copy()
    fewer[np.flatnonzero(fewer >= 0)[0]] = -1
    object.__setattr__(vocabulary, "teacher_of_student", fewer)
    assert plan.source.identity(keys)["alignment"] != identity["alignment"]


def test_a_damaged_head_is_named_before_a_step(exact_world, made_exact):
    (exact_world / "exact.zarr").unlink()
    shutil.copytree(made_exact, exact_world / "exact.zarr")
    file = exact_world / "exact.zarr" / "head" / "arrays" / "weight" / "c.0.0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    plan = prepared(exact_world)
    with pytest.raises(CorruptObject, match=r"head/arrays/weight/c\.0\.0"):
        plan.source.completion(CPU)
    result = run("train", "--config", exact_world / "recipe.yaml", "--no-progress")
    assert result.exit_code == 2
    assert "head/arrays/weight/c.0.0" in result.stderr


def test_targets_of_another_tokenizer_are_refused_with_the_sample(exact_world, monkeypatch):
    monkeypatch.setattr("firstsight.prompting.Prompter.turn_ids", lambda self, _: [[20, 21, *self.end_of_turn_ids]])
    with pytest.raises(AlignmentError, match=r"train\.jsonl:1: sample .* spell an answer differently"):
        prepared(exact_world)


def test_answers_of_the_teacher_are_soft_alone(exact_world):
    from phase1_teacher.dump import dump, prepare_dump

    rows = [json.loads(line) for line in (exact_world / "data" / "train.jsonl").read_text().splitlines()][:4]
    data = exact_world / "own"
    shutil.copytree((exact_world / "data").resolve(), data)
    for row in rows[::2]:
        del row["messages"][-1]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = yaml.safe_load((exact_world / "recipe.yaml").read_text())
    content["data"]["root"] = "own"
    content["cache"] = {"path": "answers.zarr", "generate_missing": True, "generate_max_tokens": 8}
    (exact_world / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(exact_world / "recipe.yaml")
    exact = load_recipe(exact_world / "recipe.yaml", ["cache.targets=exact"])
    dump(prepare_dump(exact, progress=False), progress=False)
    plan = prepare(recipe, progress=False)
    for index, (_, sample) in enumerate(plan.train.samples):
        targets = plan.train[index].targets
        assert targets.soft_N.all()
        assert bool(targets.hard_N.all()) == bool(targets.hard_N.any()) == (sample.answer is not None)
    with pytest.raises(SpecMismatch, match="generation"):
        prepare(load_recipe(exact_world / "recipe.yaml", ["cache.generate_missing=false"]), progress=False)
    assert len(load_samples(recipe.source("train"))) == len(plan.train)


def test_what_is_too_long_for_the_student_is_skipped_by_name_or_refused(exact_world):
    plan = prepared(exact_world)
    lengths = [*plan.train.lengths(), *plan.validation.lengths()]
    shorter = f"data.max_length={max(lengths) - 1}"
    with pytest.raises(DataError, match=r"more than data\.max_length"):
        prepared(exact_world, shorter)
    skipping = prepared(exact_world, shorter, "cache.on_error=skip")
    count = lengths.count(max(lengths))
    assert len(skipping.skipped) == skipping.facts()["skipped_samples"] == count
    assert len(skipping.train) + len(skipping.validation) == len(lengths) - count
    assert f"{counted(count, 'sample is', 'samples are')} left out (cache.on_error: skip):" in skipping.skipped_text
    assert all("more than data.max_length" in reason for reason in skipping.skipped)
    with pytest.raises(DataError, match=r"train.jsonl: none of the 26 samples can be used; the first: train.jsonl:1"):
        prepared(exact_world, "data.max_length=5", "cache.on_error=skip")
