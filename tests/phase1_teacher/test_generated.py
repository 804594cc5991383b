"""Answers that the teacher gives: where they end, and those of which nothing can be read."""

import json
import shutil

import pytest
import torch
import yaml

from firstsight.errors import AlignmentError
from firstsight.generation import generate_answers, stop_ids
from firstsight.models.loading import load_teacher
from firstsight.pair import load_teacher_pair
from firstsight.recipe import load_recipe
from phase1_teacher.derive import derive, prepare_derivation
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.forward import answers as answers_module
from phase1_teacher.forward.soft_targets import TopKTargets
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.forward.unit_batches import unit_batches
from phase1_teacher.forward.vision import VisionFeatures
from storage.errors import SpecMismatch
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache

GENERATE = {"generate_missing": True, "generate_max_tokens": 6}


def open_rows(workshop, count=6):
    """Rows without a closing answer; the second one has an answer before its last question."""
    rows = workshop.rows(count, answered=False)
    said = {"role": "assistant", "content": [{"type": "text", "text": "red lamp"}]}
    rows[1]["messages"] += [said, {"role": "user", "content": [{"type": "text", "text": "and now?"}]}]
    return rows


def lose(answers):
    """A token that begins inside a character, and that the student has no longer."""
    index = next(index for index, token in answers.teacher.table.items() if token == (b"\xe2", False))
    answers.vocabulary.student_of_teacher[index] = -1
    return index


def answer_with(monkeypatch, index):
    monkeypatch.setattr(
        answers_module, "generate_answers", lambda _model, _prompter, prompts, **_: [[index] for _ in prompts]
    )


def test_an_answer_of_which_nothing_can_be_read_is_one_line_or_a_skip(workshop, monkeypatch):
    def job_of(**cache):
        job = prepare_dump(workshop.load(open_rows(workshop), cache={**GENERATE, **cache}), progress=False)
        answer_with(monkeypatch, lose(job.pair.answers))
        return job

    with pytest.raises(AlignmentError, match=r"train.jsonl:\d: sample 's\d': the answer .* no text is left of it"):
        dump(job_of(), progress=False)
    job = job_of(on_error="skip", path="skip.zarr")
    summary = dump(job, progress=False)
    assert (summary.samples, len(summary.skipped)) == (0, 6)  # those without another answer before it, too
    assert any("train.jsonl:2: sample 's1'" in reason for reason in summary.skipped)
    assert verify_cache(job.recipe.cache_location).ok()


def test_a_derivation_names_or_skips_it_as_well(workshop, monkeypatch):
    exact = workshop.recipe(open_rows(workshop), cache={**GENERATE, "targets": "exact", "path": "exact.zarr"})
    content = yaml.safe_load(exact.read_text())
    del content["cache"]["top_k"]
    exact.write_text(yaml.safe_dump(content))
    job = prepare_dump(load_recipe(exact), progress=False)
    index = next(index for index, token in job.pair.answers.teacher.table.items() if token == (b"\xe2", False))
    answer_with(monkeypatch, index)
    dump(job, progress=False)

    def derivation(path, on_error):
        settings = ["cache.targets=top_k", "cache.top_k=16", f"cache.path={path}", f"cache.on_error={on_error}"]
        made = prepare_derivation(job.recipe.cache_location, load_recipe(exact, settings))
        lose(made.answers)
        return made

    with pytest.raises(AlignmentError, match=r"sample [0-9a-f]{64}: the answer .* no text is left of it"):
        derive(derivation("stop.zarr", "stop"), progress=False)
    made = derivation("skip.zarr", "skip")
    assert derive(made, progress=False).samples == 0
    assert "no text is left of it" in next(iter(open_cache(made.recipe.cache_location).skipped().values()))


@pytest.fixture
def ending(workshop, models):
    """A recipe whose teacher names a second control token as an end; the teacher says it where it would say another word."""
    directory = workshop.directory / "ending"
    shutil.copytree(models / "teacher", directory)
    recipe = load_recipe(workshop.recipe(open_rows(workshop), teacher={"model": str(directory)}, cache=GENERATE))
    pair = load_teacher_pair(recipe)
    model = load_teacher(directory, recipe.teacher)
    tokenizer, end = pair.teacher.tokenizer, pair.teacher.end_of_turn_ids[-1]
    other = next(index for index in sorted(tokenizer.all_special_ids) if index != end)
    prompts = [pair.teacher.encode(sample, []) for sample in samples_of(recipe)]
    free = generate_answers(model, pair.teacher, prompts, max_new_tokens=6, text_only=True)
    word = free[0][2]
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[other] = 1.5 * head[word]
    model.save_pretrained(directory)
    file = directory / "generation_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "eos_token_id": [end, other]}))
    return recipe, pair, prompts, other


def samples_of(recipe):
    from firstsight.data.samples import load_samples

    return load_samples(recipe.source("train"))


def test_a_dump_ends_an_answer_at_every_token_that_the_teachers_configuration_names(ending):
    recipe, pair, prompts, other = ending
    end = pair.teacher.end_of_turn_ids[-1]
    model = load_teacher(pair.directory, recipe.teacher)
    assert stop_ids(model, pair.teacher) == [end, other]
    as_it_is = generate_answers(model, pair.teacher, prompts, max_new_tokens=6)
    assert any(ids[-1] == other for ids in as_it_is)
    text_only = generate_answers(model, pair.teacher, prompts, max_new_tokens=6, text_only=True)
    assert [[*ids[:-1], end] if ids[-1] in (end, other) else ids for ids in as_it_is] == text_only
    dump(prepare_dump(recipe, progress=False), progress=False)
    cache = open_cache(recipe.cache_location)
    assert cache.spec["generation"]["stops"] == [other]
    stored = [cache[sample.key] for sample in samples_of(recipe)]
    ids = [each.targets.target_ids[-each.all_turns()[-1].positions :].tolist() for each in stored]
    assert other not in {index for each in ids for index in each}
    assert any(each[-1] == end and len(each) < 6 for each in ids)
    # a teacher that no longer names it gives other answers: the cache is not mixed
    file = pair.directory / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": end}))
    with pytest.raises(SpecMismatch, match=r"generation\.stops"):
        prepare_dump(recipe, progress=False)


def test_what_is_watched_is_watched_once_where_memory_forces_a_split(workshop, monkeypatch):
    job = prepare_dump(workshop.load(workshop.rows(8)), measure_student=True, progress=False)
    to_host, failures = TopKTargets.to_host, []

    def tight(self):
        if len(self.finite_N) > 6 and not failures:
            failures.append(len(self.finite_N))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return to_host(self)

    monkeypatch.setattr(TopKTargets, "to_host", tight)
    forward = TeacherForward(job)
    seen = 0
    for batch in unit_batches(job, job.pending, is_done=lambda _: False):
        for result in forward.run(batch):
            seen += len(result.measured_m)
    assert failures
    watched = [(each.sample.key, each.place) for each in forward.watched]
    assert len(watched) == seen > 1
    assert len(set(watched)) == len(watched)


def test_a_sample_that_does_not_fit_into_the_self_check_stops_nothing_else(workshop, monkeypatch, capsys):
    recipe = workshop.load(workshop.rows(6), cache={"on_error": "skip"}, teacher={"batch_tokens": 1})
    job = prepare_dump(recipe, progress=False)
    inputs = VisionFeatures.inputs

    first = []

    def small(self, batch):
        first[:] = first or [batch[0].sample.id]
        if any(sample.sample.id == first[0] for sample in batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return inputs(self, batch)

    monkeypatch.setattr(VisionFeatures, "inputs", small)
    summary = dump(job, progress=False)
    assert (summary.samples, len(summary.skipped)) == (5, 1)
    assert f"sample {first[0]!r} alone does not fit into the device's memory" in summary.skipped[0]
    assert f"sample {first[0]!r}: too large for the self-check of the teacher" in capsys.readouterr().err
