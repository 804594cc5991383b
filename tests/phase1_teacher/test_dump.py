"""The dump against a plain reference, and what it does with bad samples, little memory and full disks."""

import errno
import itertools
import json
import re

import numpy as np
import pytest
import torch

from firstsight import console
from firstsight.data.samples import Sample
from firstsight.errors import DataError, RecipeError, TargetError
from firstsight.models.loading import load_teacher
from firstsight.prompting import answer_index, collate
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.forward.unit_batches import unit_batches
from phase1_teacher.forward.vision import VisionFeatures
from phase1_teacher.planning.plan import plan_dump
from phase1_teacher.summary import summary_text
from storage.errors import SkippedSample
from storage.format.v1.arrays import VALUE_STEP
from storage.maintenance.status import cache_status
from storage.reader import open_cache
from storage.store.local import LocalStore


def run(recipe, **options):
    job = prepare_dump(recipe, progress=False)
    return job, dump(job, progress=False, **options)


def test_the_cache_holds_what_a_plain_forward_pass_gives(workshop):
    recipe = workshop.load(workshop.rows(14))
    job, summary = run(recipe)
    assert summary.samples == 14
    assert summary.units == len(job.writer.units()) > 2
    cache = open_cache(recipe.cache_location)
    teacher = load_teacher(job.pair.directory, recipe.teacher)
    keys = [key for unit in job.writer.units() for key in unit.keys]
    assert sorted(keys) == sorted(cache.keys())
    for key in keys:
        sample = job.samples[key]
        encoded = job.pair.teacher.encode(sample)
        with torch.no_grad():
            logits = teacher(**collate([encoded], 0)).logits
        rows, columns = answer_index([encoded])
        shared = job.pair.alignment.shared.nonzero()[0]
        exact = logits[rows, columns][:, : len(shared)].log_softmax(dim=1).numpy()
        stored = cache[key]
        assert stored.hard
        assert stored.targets.target_ids.tolist() == job.pair.student.answer_ids(sample.answer)
        at_ids = np.take_along_axis(exact, stored.targets.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(stored.targets.logprobs, at_ids, atol=VALUE_STEP / 2 + 1e-4)
        kth = np.sort(exact, axis=1)[:, -recipe.cache.top_k]
        assert (at_ids[:, :-1] >= kth[:, None] - 1e-5).all()
        left = exact.copy()
        np.put_along_axis(left, stored.targets.ids.astype(np.int64), -np.inf, axis=1)
        for column, T in enumerate(recipe.cache.temperatures):
            tail = np.logaddexp.reduce(left.astype(np.float64) / T, axis=1)
            np.testing.assert_allclose(stored.targets.tail[:, column], tail, atol=0.01)
    again = prepare_dump(recipe, progress=False)
    assert again.pending == []
    assert again.planned == 0
    assert dump(again, model="never loaded", progress=False).units == 0


def test_samples_without_answer_are_refused_or_answered_by_the_teacher(workshop):
    rows = workshop.rows(4) + workshop.rows(4, start=4, answered=False) + workshop.rows(2, start=8)
    with pytest.raises(DataError, match="has no answer; add an assistant message, or let the teacher answer"):
        prepare_dump(workshop.load(rows), progress=False)
    wanted = {"generate_missing": True, "generate_max_tokens": 5}
    answers = {}
    for temperature, seed in ((0, 0), (1, 0), (1, 0), (1, 1)):
        recipe = workshop.load(
            rows,
            cache={
                **wanted,
                "path": f"cache{len(answers)}",
                "generate_temperature": temperature,
                "generate_seed": seed,
            },
        )
        job, _ = run(recipe)
        cache = open_cache(recipe.cache_location)
        found = {key: cache[key] for key in cache}
        own = {key: job.samples[key].answer is not None for key in found}
        assert {key: sample.hard for key, sample in found.items()} == own
        answers[len(answers)] = [
            sample.targets.target_ids.tolist() for _, sample in sorted(found.items()) if not sample.hard
        ]
        assert cache.statistics()["answers_generated"] == 4
    assert all(len(ids) <= 5 for ids in answers[0])
    special = set(job.pair.teacher.tokenizer.all_special_ids) - set(job.pair.teacher.end_of_turn_ids)
    assert not special & {index for group in answers.values() for ids in group for index in ids}
    assert answers[1] == answers[2] != answers[0]
    assert answers[3] != answers[1]


def test_a_generated_answer_is_the_teachers_first_choice(workshop):
    rows = workshop.rows(4, answered=False)
    recipe = workshop.load(rows, cache={"generate_missing": True, "generate_max_tokens": 6})
    run(recipe)
    cache = open_cache(recipe.cache_location)
    for key in cache:
        targets = cache[key].targets
        # control tokens are not generated, though the teacher may rank them first
        assert (targets.target_logprobs >= targets.logprobs[:, 8]).all()


@pytest.mark.parametrize("key", ["generate_max_tokens", "generate_temperature", "generate_seed"])
def test_how_to_generate_is_not_stated_for_nothing(workshop, key):
    rows = workshop.rows(3)
    for check in (prepare_dump, plan_dump):
        with pytest.raises(RecipeError, match=rf"cache\.{key}: has no effect without cache\.generate_missing: true"):
            check(workshop.load(rows, cache={key: 1}), progress=False)
    prepare_dump(workshop.load(rows, cache={key: 1, "generate_missing": False}), progress=False)


def test_every_image_goes_through_the_vision_tower_once_per_unit(workshop, monkeypatch):
    rows = workshop.rows(24, questions=6)
    recipe = workshop.load(rows, cache={"unit_positions": 10_000})
    job = prepare_dump(recipe, progress=False)
    forward = TeacherForward(job)
    seen = []
    forward.model.model.visual.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    dump(job, model=forward.model, progress=False)
    assert sum(seen) == 4 + 3  # and the self-check: ours, and two of the stock model
    sums = open_cache(recipe.cache_location).statistics()
    assert (sums["images_encoded"], sums["images_used"]) == (4, 24)
    assert sums["seconds"] > 0

    start = VisionFeatures.__init__

    def unshared(self, *args):
        start(self, *args)
        self.shared = False

    monkeypatch.setattr(VisionFeatures, "__init__", unshared)
    plain = workshop.load(rows, cache={"unit_positions": 10_000, "path": "plain"})
    seen.clear()
    dump(prepare_dump(plain, progress=False), model=forward.model, progress=False)
    assert sum(seen) == 24 + 3
    a, b = open_cache(recipe.cache_location), open_cache(plain.cache_location)
    for key in a.keys():  # noqa: SIM118
        np.testing.assert_allclose(a[key].targets.logprobs, b[key].targets.logprobs, atol=VALUE_STEP + 1e-4)


def test_an_image_is_opened_once_for_all_questions_of_a_batch(workshop, monkeypatch):
    job = prepare_dump(workshop.load(workshop.rows(24, questions=6), cache={"unit_positions": 10_000}), progress=False)
    opened = []
    open_image = Sample.open_image
    monkeypatch.setattr(Sample, "open_image", lambda self, path: opened.append(path) or open_image(self, path))
    batches = list(unit_batches(job, job.pending, is_done=lambda _: False))
    wanted = [{path for sample in batch.samples for path in sample.sample.images} for batch in batches]
    assert len(opened) == sum(map(len, wanted)) < 24
    for sample in (sample for batch in batches for sample in batch.samples):
        alone = job.pair.teacher.encode(sample.sample)
        assert torch.equal(alone.input_ids, sample.encoded.input_ids)
        assert torch.equal(alone.images["pixel_values"], sample.encoded.images["pixel_values"])


def test_little_memory_halves_the_batches_and_is_noted(workshop, monkeypatch):
    rows = workshop.rows(12)
    run(workshop.load(rows, cache={"path": "whole"}))
    small = workshop.load(rows, cache={"path": "halved"})
    largest = []
    states = TeacherForward._states

    def short(self, samples, *rest):
        tokens = len(samples) * max(len(sample.encoded.input_ids) for sample in samples)
        if tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        largest.append(tokens)
        return states(self, samples, *rest)

    monkeypatch.setattr(TeacherForward, "_states", short)
    _, summary = run(small)
    assert summary.split_budget is not None
    assert summary.split_budget < 128
    assert max(largest) <= 100
    status = cache_status(small.cache_location)
    assert status.split_units
    assert "fewer than teacher.batch_tokens" in summary_text(small.cache_location, summary)
    whole = open_cache(str(workshop.directory / "whole"))
    halved = open_cache(small.cache_location)
    for key in whole.keys():  # noqa: SIM118
        np.testing.assert_allclose(whole[key].targets.logprobs, halved[key].targets.logprobs, atol=VALUE_STEP + 1e-4)

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TeacherForward, "_states", none)
    with pytest.raises(TargetError, match=r"sample 's\d+' alone does not fit .* lower teacher.max_pixels"):
        run(workshop.load(rows, cache={"path": "none"}))


def test_the_peak_of_memory_is_set_back_before_each_dump(workshop, monkeypatch):
    events = []
    run_batch = TeacherForward.run
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: events.append("reset"))
    monkeypatch.setattr(TeacherForward, "run", lambda *args: events.append("forward") or run_batch(*args))
    for path in ("first", "second"):
        run(workshop.load(workshop.rows(3), cache={"path": path}))
    assert [event for event, _ in itertools.groupby(events)] == ["reset", "forward"] * 2
    assert events.count("reset") == 2


def test_padding_stays_below_five_percent(workshop):
    recipe = workshop.load(workshop.rows(40), cache={"unit_positions": 10_000}, teacher={"batch_tokens": 512})
    run(recipe)
    sums = open_cache(recipe.cache_location).statistics()
    assert 1 - sums["tokens"] / sums["padded_tokens"] < 0.05


def broken_states(states, name):
    def broken(self, samples, *rest):
        hidden = states(self, samples, *rest)
        start = 0
        for sample in samples:
            if sample.sample.id == name:
                hidden[start] = torch.nan
            start += sample.encoded.positions
        return hidden

    return broken


def test_logits_that_are_not_finite_stop_the_dump_or_skip_the_sample(workshop, monkeypatch):
    rows = workshop.rows(12)
    monkeypatch.setattr(TeacherForward, "_states", broken_states(TeacherForward._states, "s5"))
    stopping = workshop.load(rows, cache={"path": "stop"})
    with pytest.raises(TargetError, match=r"train.jsonl:6: sample 's5': the teacher's logits are not finite"):
        run(stopping)
    assert prepare_dump(stopping, progress=False).pending
    skipping = workshop.load(rows, cache={"path": "skip", "on_error": "skip"})
    job, _ = run(skipping)
    cache = open_cache(skipping.cache_location)
    key = next(key for unit in job.writer.units() for key in unit.keys if job.samples[key].id == "s5")
    with pytest.raises(SkippedSample, match="not finite"):
        cache[key]
    assert len(cache) == 11
    assert np.isfinite(list(cache.statistics().values())).all()


def test_samples_that_cannot_be_encoded_stop_the_dump_or_are_skipped(workshop):
    rows = workshop.rows(12)
    damaged = workshop.directory / "data" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DataError, match=r"image .*1.png cannot be decoded"):
        run(workshop.load(rows))
    recipe = workshop.load(rows, cache={"path": "skip", "on_error": "skip"})
    run(recipe)
    cache = open_cache(recipe.cache_location)
    assert len(cache) == 10
    assert sorted(reason.split(": image ")[0] for reason in cache.skipped().values()) == [
        "train.jsonl:3",
        "train.jsonl:4",
    ]


def test_a_full_disk_stops_the_dump(workshop, monkeypatch):
    recipe = workshop.load(workshop.rows(30))
    job = prepare_dump(recipe, progress=False)
    write_tree, calls = LocalStore.write_tree, []

    def full(self, *args):
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_tree(self, *args)

    monkeypatch.setattr(LocalStore, "write_tree", full)
    with pytest.raises(OSError, match="No space left"):
        dump(job, progress=False)
    monkeypatch.undo()
    assert cache_status(recipe.cache_location).committed == 1
    run(recipe)
    assert cache_status(recipe.cache_location).pending == []


def test_edited_and_removed_samples_after_planning(workshop):
    rows = workshop.rows(8)
    recipe = workshop.load(rows)
    job = prepare_dump(recipe, progress=False)
    data = workshop.directory / "data" / "train.jsonl"
    changed = json.loads(data.read_text().splitlines()[1])
    changed["messages"][0]["content"][1]["text"] = "other words"
    lines = data.read_text().splitlines()
    original = lines[1]
    lines[1] = json.dumps(changed).ljust(len(original))[: max(len(original), len(json.dumps(changed)))]
    data.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="changed during the dump"):
        dump(job, progress=False)
    with pytest.raises(DataError, match="was not found in the data; put it back"):
        run(recipe)


def test_int8_and_the_check_of_quantisation(workshop):
    recipe = workshop.load(workshop.rows(6), teacher={"quantization": "int8"})
    _, summary = run(recipe, check_quantization=True)
    sums = open_cache(recipe.cache_location).statistics()
    assert 0 < sums["check_positions"] <= sums["positions"]
    assert 0 < sums["check_kl"] / sums["check_positions"] < 0.1
    assert "Against the unquantised teacher" in summary_text(recipe.cache_location, summary)


def test_a_dump_gives_signs_of_life_without_a_terminal(workshop, monkeypatch, capsys):
    monkeypatch.setattr(console, "HEARTBEAT", 0.0)
    run(workshop.load(workshop.rows(8)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teacher: ")]
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(
            r"teacher: sample \d of 8 \(\d+%\), \S+ samples/s, ETA \S+(, waiting for data \d+%)?", line
        ), line
