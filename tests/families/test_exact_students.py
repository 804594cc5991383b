"""One exact cache for students of several tokenizers, the teacher's directory moved away; and the same run with the teacher there."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import build
from transformers import AutoModelForCausalLM
from world import fs_student, fs_teacher, make_world, passes, run

from firstsight.errors import AlignmentError
from firstsight.pair import load_pair
from firstsight.prompting import collate
from firstsight.recipe import load_recipe
from phase2_student.training.prepare import prepare

TEACHER, STUDENTS = "llama", ("qwen2", "gemma3", "llama")
STEPS = 20
TALK = (
    ("user", "Where am I?"),
    ("assistant", "You are in the kitchen."),
    ("user", "And now?"),
    ("assistant", "A red mug."),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recipes for exact targets, with all answers and with every second one missing; a student of each tokenizer."""
    directory = tmp_path_factory.mktemp("students")
    path = make_world(directory, TEACHER, STUDENTS[0])
    text = path.read_text().replace("  top_k: 16\n", "  targets: exact\n")
    path.write_text(text)
    for number, kind in enumerate(STUDENTS[1:], start=3):
        build(kind, directory / kind, seed=number)
    shutil.copytree(directory / "student", directory / STUDENTS[0])
    answers = "  generate_missing: true\n  generate_max_tokens: 8\n  path: answers.zarr\n  targets: exact\n"
    (directory / "answers.yaml").write_text(
        text.replace("  targets: exact\n", answers).replace("data:\n", "data:\n  root: open\n")
    )
    shutil.copytree(directory / "data", directory / "open")
    for name in ("train", "validation"):
        file = directory / "open" / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows[::2]:
            del row["messages"][-1]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    conversation = [{"role": role, "content": text} for role, text in TALK]
    with (directory / "data" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "talk", "messages": conversation}) + "\n")
    for name in ("recipe.yaml", "answers.yaml"):
        passes(fs_teacher, "dump", "--config", directory / name, "--no-progress", "--student", "none")
    return directory


@pytest.mark.parametrize("kind", STUDENTS)
def test_targets_are_the_teachers_at_the_bytes_where_both_stand(made, kind):
    """Each soft position has the distribution of a plain forward of the teacher, at the position that the pair's rows say."""
    recipe = load_recipe(made / "answers.yaml", [f"student.model={kind}"])
    pair = load_pair(recipe)
    teacher = AutoModelForCausalLM.from_pretrained(pair.directory, dtype=torch.float32)
    plan = prepare(recipe, progress=False)
    complete, collator = plan.source.completion(torch.device("cpu")), plan.source.collator()
    soft = hard = 0
    for index, (key, sample) in enumerate(plan.train.samples):
        teacher_ids = plan.source.cache.rows(key).target_ids.astype(np.int64)
        encoded = pair.teacher.encode(sample, [teacher_ids.tolist()])
        with torch.inference_mode():
            logits_LV = teacher(**collate([encoded], pair.teacher.pad_id)).logits[0]
        targets = complete(collator([plan.train[index]])).targets
        # the random teacher's answers are not always text to their end
        known = teacher_ids if sample.answer is not None else pair.answers.readable(teacher_ids)
        rows = pair.answers.rows(known, targets.target_ids_N.numpy())
        assert torch.equal(targets.soft_N, torch.from_numpy(rows >= 0))
        assert bool(targets.hard_N.all()) == bool(targets.hard_N.any()) == (sample.answer is not None)
        if sample.answer is not None:
            assert targets.target_ids_N.tolist() == pair.student.answer_ids(sample.answer)
        logits_PV = logits_LV[encoded.answer_columns[rows[rows >= 0]]]
        ids = pair.alignment.teacher_of_student[pair.alignment.shared]
        wanted = (logits_PV[:, ids] / recipe.loss.temperature).log_softmax(1)
        found = targets.chunk(slice(None)).log_p_NS[targets.soft_N]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        soft, hard = soft + len(wanted), hard + int(targets.hard_N.sum())
    assert soft > 10
    assert hard > 10


def test_every_answer_of_a_conversation_has_its_targets(made):
    recipe = load_recipe(made / "recipe.yaml", ["student.model=qwen2"])
    exact, online = prepare(recipe, progress=False), prepare(recipe, online=True, progress=False)
    (index,) = [number for number, (_, sample) in enumerate(exact.train.samples) if len(sample.answers) == 2]
    one, two = exact.train[index], online.train[index]
    assert one.encoded.turn_ids == two.encoded.turn_ids
    assert len(one.encoded.turn_ids) == 2
    assert torch.equal(one.targets.soft_N, two.targets.rows >= 0)
    assert one.targets.hard_N.all()
    refused = run(fs_student, "train", "--config", made / "recipe.yaml", "--set", "data.turns=last")
    assert refused.exit_code == 2
    assert "turns: the cache has" in refused.output


def losses(directory):
    state = json.loads((directory / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [row for row in state["log_history"] if "loss" in row]


def test_a_run_from_exact_targets_is_the_run_with_the_teacher_in_memory(made, tmp_path):
    """For a student of another tokenizer, at a temperature that no top_k cache has."""
    command = ["train", "--config", made / "recipe.yaml", "--no-progress"]
    for setting in (
        "student.model=qwen2", "loss.temperature=5", f"training.max_steps={STEPS}", f"training.save_steps={STEPS}",
        "training.logging_steps=1", "training.eval_strategy=steps", "training.save_strategy=steps",
        f"training.eval_steps={STEPS}",
    ):  # fmt: skip
        command += ["--set", setting]
    assert "exact targets" in passes(fs_student, *command, "--set", f"training.output_dir={tmp_path / 'exact'}")
    online = ("--online", "--set", "cache.path=none.zarr", "--set", f"training.output_dir={tmp_path / 'online'}")
    passes(fs_student, *command, *online)
    one, two = losses(tmp_path / "exact"), losses(tmp_path / "online")
    assert len(one) == len(two) == STEPS
    for a, b in zip(one, two, strict=True):
        # a small KL is a difference of logs: its own rounding is larger
        for name, allowed in (("loss", 1e-5), ("ce", 1e-5), ("kd", 1e-4)):
            assert a[name] == pytest.approx(b[name], rel=allowed), (a["step"], name)
        assert a["agreement"] == b["agreement"]


def test_every_student_trains_with_the_teacher_moved_away(made, tmp_path):
    (made / "teacher").rename(made / "elsewhere")
    try:
        for kind in STUDENTS:
            settings = ("--set", f"student.model={kind}", "--set", f"training.output_dir={tmp_path / kind}")
            shown = passes(fs_student, "train", "--config", made / "answers.yaml", "--no-progress", *settings)
            assert "exact targets" in shown
            if kind != TEACHER:
                assert "tokens that the student has" in shown
    finally:
        (made / "elsewhere").rename(made / "teacher")


def test_an_answer_that_a_student_cannot_spell_is_an_error_or_left_out_and_counted(made, monkeypatch, tmp_path):
    from firstsight.answer_alignment import AnswerAlignment

    original = AnswerAlignment.rows

    def rows(self, teacher_ids, student_ids, **options):
        if len(teacher_ids) == shortest:
            raise AlignmentError("the two tokenizers spell an answer differently")
        return original(self, teacher_ids, student_ids, **options)

    recipe = load_recipe(made / "recipe.yaml")
    cache = prepare(recipe, progress=False).source.cache
    lengths = [len(cache.rows(key).target_ids) for key in cache]
    shortest = min(lengths)
    monkeypatch.setattr(AnswerAlignment, "rows", rows)
    refused = run(fs_student, "train", "--config", made / "recipe.yaml", "--set", f"training.output_dir={tmp_path}")
    assert refused.exit_code == 2
    assert "spell an answer differently" in refused.output
    left = prepare(load_recipe(made / "recipe.yaml", ["cache.on_error=skip"]), progress=False)
    assert len(left.skipped) == lengths.count(shortest)
    assert "spell an answer differently" in left.skipped_text
    assert left.facts()["skipped_samples"] == lengths.count(shortest)
    assert len(left.train.lengths()) == len(left.train)
