"""Rows of several answers through both phases: every answer is dumped, trained on and counted, whatever the pair."""

import json

import numpy as np
import pytest
import torch
import yaml
from checkpoints import VISION
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from world import fs_student, fs_teacher, make_world, passes, run

from firstsight.data.samples import load_samples
from firstsight.pair import load_pair
from firstsight.prompting import collate
from firstsight.recipe import load_recipe
from phase1_teacher.planning import job
from phase2_student.training.prepare import prepare
from storage import open_cache

TALK = [
    ("What is it?", "A red mug."),
    ("Where am I?", "In the kitchen,\nat the counter."),
    ("And now?", "Nothing changed."),
]


def talks(directory, *, open_rows=(), ends=3):
    """Make the rows of a world conversations: of 1, 2, 3, 1, ... answers; some end with a question."""
    for split in ("train", "validation"):
        path = directory / "data" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            first = row["messages"][0]
            images = row["images"] and ["1.png"]
            messages = []
            for turn, (question, answer) in enumerate(TALK[: 1 + number % ends]):
                later = [{"type": "image"}] * (turn == 1 and bool(images))
                asked = [*later, {"type": "text", "text": f"{question} {number}"}]
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
                row["images"] += images if later else []
            messages[0] = first
            if split == "train" and number in open_rows:
                messages.append({"role": "user", "content": "Is it near?"})
            row["messages"] = messages
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def logits_of(pair, kind):
    load = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    model = load.from_pretrained(pair.directory, dtype=torch.float32)

    def logits(encoded):
        with torch.inference_mode():
            return model(**collate([encoded], pair.teacher.pad_id)).logits[0].float()

    return logits


@pytest.mark.parametrize(("teacher", "student"), [("qwen2_vl", "smolvlm"), ("qwen3", "qwen2")])
def test_every_answer_is_dumped_and_trained_on(teacher, student, tmp_path):
    cache_section = {"generate_missing": True, "generate_max_tokens": 5}
    recipe_file = make_world(tmp_path, teacher, student, cache=cache_section)
    talks(tmp_path, open_rows=(1, 5))
    config = ("--config", recipe_file, "--no-progress")
    assert "positions of 24 answers" in passes(fs_teacher, "plan", *config)
    passes(fs_teacher, "dump", *config)
    passes(fs_teacher, "verify", tmp_path / "cache.zarr")
    recipe = load_recipe(recipe_file)
    pair, cache = load_pair(recipe), open_cache(recipe.cache_location)
    assert cache.spec["turns"] == "all"
    logits, positions = logits_of(pair, teacher), {"hard": 0, "all": 0}
    for sample in load_samples(recipe.source("train")):
        stored = cache[sample.key]
        turns, targets = stored.all_turns(), stored.targets
        assert [turn.hard for turn in turns] == [True] * len(sample.answers) + [False] * (sample.answer is None)
        ids = [part.tolist() for part in np.split(targets.target_ids, np.cumsum([t.positions for t in turns])[:-1])]
        assert ids[: len(sample.answers)] == pair.student.turn_ids(sample)
        encoded = pair.teacher.encode(sample)
        whole = pair.teacher.turn_ids(sample)
        rows = pair.answer_rows(sample, whole, ids[: len(whole)])
        own = len(rows)
        assert ((rows >= 0) == targets.soft[:own]).all()
        logits_PV = logits(encoded)[encoded.answer_columns[rows[rows >= 0]]]
        shared = pair.alignment.shared
        log_p_PV = torch.full((len(logits_PV), len(shared)), -torch.inf)
        log_p_PV[:, shared] = logits_PV[:, pair.alignment.teacher_of_student[shared]].log_softmax(dim=1)
        soft_ids = torch.from_numpy(targets.ids[:own][rows >= 0].astype(np.int64))
        found = targets.logprobs[:own][rows >= 0]
        np.testing.assert_allclose(found, log_p_PV.gather(1, soft_ids), atol=3 / 128 + 1e-3, rtol=0)
        positions["hard"] += sum(turn.positions for turn in turns if turn.hard)
        positions["all"] += len(targets)
    plan = prepare(recipe, progress=False)
    items = [plan.train[index] for index in range(len(plan.train))]
    assert sum(item.encoded.positions for item in items) == positions["all"] > positions["hard"]
    assert sum(int(item.targets.hard_N.sum()) for item in items) == positions["hard"]
    counted = sum(int((item.targets.hard_N | item.targets.soft_N).sum()) for item in items)
    assert positions["hard"] < plan.source.collator()(items).counted() == counted
    assert plan.train.lengths() == [len(item.encoded.input_ids) for item in items]
    assert plan.unlearned_text == ""
    assert plan.train[~0].encoded.positions == 0
    passes(fs_student, "plan", *config)
    passes(fs_student, "train", *config)
    assert_every_answer_is_evaluated(tmp_path, recipe, student)
    shown = passes(fs_teacher, "show", tmp_path / "cache.zarr", "--sample", "s2")
    for question, answer in TALK[1:]:
        assert f"question  {question} 2\nanswer    {answer}" in shown
    assert "answer    (by the teacher)" in passes(fs_teacher, "show", tmp_path / "cache.zarr", "--sample", "s1")


def assert_every_answer_is_evaluated(directory, recipe, kind):
    """Each with the true history before it; the sums of KL are those of a plain forward pass of the whole conversation."""
    options = ("--timed", 1, "--requests", 1, "--max-new-tokens", 4, "--batch-size", 3)
    config = ("--config", directory / "recipe.yaml", "--no-progress", "--model", "base")
    shown = passes(fs_student, "eval", *config, *options)
    assert "7 answers of 4 rows: each is asked for separately, with the true answers before it as history." in shown
    (file,) = (directory / "run" / "evaluation").glob("evaluation_*.json")
    evaluation = json.loads(file.read_text())
    records = evaluation["models"][0]["samples"]
    samples = load_samples(recipe.source("validation"))
    assert [record["truth"] for record in records] == [answer for sample in samples for answer in sample.answers]
    assert [record["id"] for record in records[:3]] == ["s8", "s9 answer 1", "s9 answer 2"]
    assert records[1]["question"].startswith("What is it?")
    assert len(records[2]["images"]) >= len(records[1]["images"])
    plan, cache = prepare(recipe, progress=False), open_cache(recipe.cache_location)
    load = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    model = load.from_pretrained(directory / "student", dtype=torch.float32)
    rest = iter(records)
    for sample in samples:
        encoded = plan.source.prompter.encode(sample)
        with torch.inference_mode():
            logits = model(**collate([encoded], plan.source.prompter.pad_id)).logits[0, encoded.answer_columns].double()
        log_q = logits.masked_fill(torch.from_numpy(~plan.source.shared_mask()), -torch.inf).log_softmax(dim=1)
        targets, begin = cache[sample.key].targets, 0
        for count in encoded.turns:
            total = 0.0
            for place in np.flatnonzero(targets.soft[begin : begin + count]) + begin:
                ids, log_p = (
                    torch.from_numpy(targets.ids[place].astype(np.int64)),
                    targets.logprobs[place].astype(float),
                )
                left = torch.ones(log_q.shape[1], dtype=torch.bool)
                left[ids] = False
                tail = float(targets.tail[place, 0])
                mass = np.logaddexp(np.logaddexp.reduce(log_p), tail)
                p, r = np.exp(log_p - mass), np.exp(tail - mass)
                total += float((p * (log_p - mass - log_q[place, ids].numpy())).sum())
                total += r * (tail - mass - float(log_q[place, left].logsumexp(dim=0))) if r > 0 else 0.0
            assert next(rest)["kl_sum"] == pytest.approx(total, rel=1e-3, abs=1e-4)
            begin += count


def test_online_training_is_that_on_a_cache_of_everything(tmp_path):
    recipe_file = make_world(tmp_path, "qwen2", "qwen2", training={"max_steps": 3, "logging_steps": 1})
    talks(tmp_path)
    every = int(load_pair(load_recipe(recipe_file)).alignment.shared.sum())
    config = ("--config", recipe_file, "--no-progress", "--set", f"cache.top_k={every}")
    passes(fs_teacher, "dump", *config)
    passes(fs_student, "train", *config)
    passes(
        fs_student, "train", *config, "--online", "--set", "training.output_dir=online", "--set", "cache.path=none.zarr"
    )
    logs = [
        json.loads((tmp_path / name / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        for name in ("run", "online")
    ]
    compared = 0
    for a, b in zip(*logs, strict=True):
        for name in {"loss", "kd", "ce", "eval_loss"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-2), name
            compared += 1
    assert compared >= 9
    recipe = load_recipe(recipe_file, [f"cache.top_k={every}"])
    cached, online = (prepare(recipe, online=online, progress=False).train for online in (False, True))
    for index in range(len(cached)):
        one, other = cached[index], online[index]
        assert one.encoded.input_ids.tolist() == other.encoded.input_ids.tolist()
        assert one.encoded.turns == other.encoded.turns
        assert one.targets.soft_N.tolist() == (other.targets.rows >= 0).tolist()


def test_a_cache_of_last_answers(tmp_path, monkeypatch):
    """As format version 1 has them: trained on as it is and said so, grown with rows of one answer, else refused by name."""
    recipe_file = make_world(tmp_path, "llama", "qwen2")
    config = ("--config", recipe_file, "--no-progress")
    talks(tmp_path)
    create = job.create_cache
    monkeypatch.setattr(job, "create_cache", lambda place, spec: create(place, {**spec, "format_version": 1}))
    passes(fs_teacher, "dump", *config, "--set", "data.turns=last")
    monkeypatch.undo()
    cache = open_cache(str(tmp_path / "cache.zarr"))
    assert (cache.spec["format_version"], "turns" in cache.spec) == (1, False)

    assert "positions of 8 answers" in passes(fs_student, "plan", *config)
    assert "positions of 15 answers" in passes(fs_student, "plan", *config, "--set", "data.turns=all")
    trained = passes(fs_student, "train", *config)
    assert "answers before the last one of a row are not trained on (the cache holds each row's last answer)" in trained
    said = run(fs_student, "train", *config, "--set", "data.turns=all", "--set", "training.output_dir=other")
    assert said.exit_code == 2
    assert 'turns: the cache has "last", the request has "all"' in said.output
    plan = prepare(load_recipe(recipe_file), progress=False)
    assert plan.source.prompter.turns == "last"
    assert [len(plan.train[index].encoded.turns) for index in range(len(plan.train))] == [1] * len(plan.train)

    for command in ("plan", "dump"):
        refused = run(fs_teacher, command, *config)
        assert refused.exit_code == 2, refused.output
        assert "train.jsonl:2: sample 's1' has 2 answers, and " in refused.output
        assert "holds only the last of each row" in refused.output
        assert "set data.turns: last to add to it, or use another cache.path" in refused.output
    assert "holds all 12 samples" in passes(fs_teacher, "dump", *config, "--set", "data.turns=last")
    talks(tmp_path, ends=1)
    for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        row["messages"][0]["content"] = f"{row['id']}?"
        with (tmp_path / "data" / "more.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    passes(fs_teacher, "dump", *config, "--set", "data.train=[more.jsonl]")  # of one answer each: nothing is left out
    assert len(open_cache(str(tmp_path / "cache.zarr"))) > len(cache)


def test_exact_targets_of_every_answer_and_what_is_derived_of_them(tmp_path):
    top_k = make_world(tmp_path, "qwen3", "smolvlm", cache={"path": "derived.zarr"})
    talks(tmp_path)
    content = yaml.safe_load(top_k.read_text())
    content["cache"] = {"path": "exact.zarr", "targets": "exact"}
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(content))
    passes(fs_teacher, "dump", "--config", tmp_path / "exact.yaml", "--no-progress")
    passes(fs_teacher, "derive", tmp_path / "exact.zarr", "--config", top_k, "--no-progress")
    passes(fs_teacher, "dump", "--config", top_k, "--no-progress", "--set", "cache.path=dumped.zarr")
    derived, dumped = (open_cache(str(tmp_path / f"{name}.zarr")) for name in ("derived", "dumped"))
    assert derived.spec["turns"] == dumped.spec["turns"] == "all"
    assert sorted(derived) == sorted(dumped)
    assert max(len(derived[key].turns) for key in derived) == 3
    for key in derived:
        one, other = derived[key], dumped[key]
        assert (one.turns, one.hard) == (other.turns, other.hard)
        for name in ("target_ids", "soft"):
            assert getattr(one.targets, name).tolist() == getattr(other.targets, name).tolist(), name
    exact, stored = (prepare(load_recipe(path), progress=False).train for path in (tmp_path / "exact.yaml", top_k))
    for index in range(len(stored)):
        one, other = exact[index], stored[index]
        assert one.encoded.turns == other.encoded.turns
        assert one.encoded.input_ids.tolist() == other.encoded.input_ids.tolist()
        for name in ("soft_N", "hard_N", "target_ids_N"):
            assert getattr(one.targets, name).tolist() == getattr(other.targets, name).tolist(), name
    passes(fs_student, "train", "--config", tmp_path / "exact.yaml", "--no-progress")
    other = run(fs_teacher, "derive", tmp_path / "exact.zarr", "--config", top_k, "--set", "data.turns=last")
    assert other.exit_code == 2
    assert 'turns: the cache has "all", the request has "last"' in other.output
