"""What a family or a model cannot do is refused by name before anything is paid for, and what it brings along is left out."""

import inspect
import json
import shutil

import pytest
import torch
from checkpoints import build
from transformers import LlamaForCausalLM
from world import fs_student, fs_teacher, make_world, passes, run

from firstsight.errors import DataError, ModelError, RecipeError
from firstsight.families.parts import language_modules, meta_model
from firstsight.generation import generate_answers, left_out
from firstsight.models.loading import load_config, load_teacher
from firstsight.pair import load_prompter
from firstsight.recipe import StudentSection, TeacherSection
from storage import open_cache


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("command", ["plan", "dump"])
def test_an_unknown_family_is_refused_with_the_list(role, command, tmp_path):
    recipe = make_world(tmp_path, "qwen2", "qwen2")
    config = tmp_path / role / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "opt"}))
    result = run(fs_teacher, command, "--config", recipe, "--no-progress")
    assert result.exit_code == 2
    assert f"{role}.model" in result.output
    assert "'opt' is not supported; supported are Qwen2-VL (qwen2_vl)" in result.output
    assert not (tmp_path / "cache.zarr").exists()


@pytest.mark.parametrize(
    "change",
    [lambda z: z * 0.25, lambda z: z / 8, lambda z: 30 * torch.tanh(z / 30), lambda z: z + 0.5 * (z > 20)],
    ids=["scale", "division", "softcap", "bump"],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_logits_that_are_changed_after_the_head_are_found(change, role, tmp_path, monkeypatch):
    recipe = make_world(tmp_path, "llama", "qwen2") if role == "teacher" else make_world(tmp_path, "qwen2", "llama")
    if role == "student":
        passes(fs_teacher, "dump", "--config", recipe, "--no-progress")
    stock = LlamaForCausalLM.forward

    def changed(self, *args, **kwargs):
        output = stock(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    changed.__signature__ = inspect.signature(stock)
    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    main, command = (fs_teacher, "dump") if role == "teacher" else (fs_student, "train")
    result = run(main, command, "--config", recipe, "--no-progress")
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"{role}: " in result.output
    assert "logits" in result.output
    assert "not supported" in result.output


def test_a_text_model_refuses_images_by_sample(tmp_path):
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    build("qwen2", tmp_path / "text")
    result = run(fs_teacher, "dump", "--config", recipe, "--no-progress", "--set", "teacher.model=text")
    assert result.exit_code == 2
    assert "train.jsonl:2: sample 's1' has 1 image, but Qwen2, Qwen2.5 (text) sees none" in result.output


def test_a_control_token_that_only_the_tokenizer_file_marks_is_refused(checkpoint, rows, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("qwen2_vl"), directory)
    prompter = load_prompter(directory, StudentSection())
    assert "<|im_start|>" not in prompter.tokenizer.all_special_tokens
    for text, answer in (("a <|im_start|>system b", "x"), ("a", "x<|im_start|>"), ("see <|vision_end|>", "x")):
        (sample,) = rows(([], text, answer))
        with pytest.raises(DataError, match=r"has the control token <\|(im_start|vision_end)\|> in its text"):
            prompter.encode(sample)
    with pytest.raises(RecipeError, match=r"data\.system_prompt: has the control token <\|im_end\|>"):
        load_prompter(directory, StudentSection(), max_length=100, system_prompt="Be short.<|im_end|>")


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_one_beginning_of_sequence_where_template_and_tokenizer_make_one(kind, checkpoint, rows):
    prompter = load_prompter(checkpoint(kind), StudentSection())
    (sample,) = rows(([], "What is it?", "A mug."))
    bos = prompter.tokenizer.bos_token_id
    assert prompter.tokenizer("x")["input_ids"][0] == bos
    assert prompter.encode(sample).input_ids.tolist().count(bos) == 1
    assert prompter.prompt_tokens(sample)[0] == len(prompter.encode(sample, []).input_ids)


def test_greedy_is_greedy_whatever_the_generation_configuration(checkpoint, rows, tmp_path, caplog):
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("qwen2_vl"), directory)
    section = TeacherSection(quantization="none", dtype="float32", device_map="cpu")
    prompter = load_prompter(directory, section)
    prompts = [
        prompter.encode(sample, []) for sample in rows((["small.png"], "What is it?", None), ([], "Where?", None))
    ]
    plain = generate_answers(load_teacher(directory, section), prompter, prompts, max_new_tokens=12)
    (directory / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 5.0})
    )
    model = load_teacher(directory, section)
    assert left_out(model) == {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    assert generate_answers(model, prompter, prompts, max_new_tokens=12) == plain
    assert generate_answers(model, prompter, prompts, max_new_tokens=12) == plain
    (line,) = caplog.messages
    assert (
        line == "the model's own generation settings are not used: no_repeat_ngram_size = 1, repetition_penalty = 3.0"
    )
    assert model.generation_config.repetition_penalty == 3.0


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "llava_onevision"])
def test_adapters_lie_in_the_language_model(kind, checkpoint):
    model = meta_model(load_config(checkpoint(kind), StudentSection()))
    text = [name for name, _ in model.named_modules() if name.endswith(".down_proj") and "vis" not in name]
    assert language_modules(model, "down_proj") == text
    assert len(text) == 2


def test_adapters_of_a_run_lie_in_the_language_model(tmp_path):
    from phase2_student.training.weights import prepare_weights

    recipe = StudentSection(lora={"r": 2})
    model = prepare_weights(meta_model(load_config(build("qwen2_5_vl", tmp_path / "m"), recipe)), recipe)
    adapters = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapters) == 2 * 7
    assert not [name for name in adapters if "visual" in name]


@pytest.mark.parametrize(
    ("kind", "pixels", "message"),
    [
        ("gemma3", 55 * 56, r"student.max_pixels: Gemma 3 sees every image at 56 x 56 pixels, more than 3,080"),
        ("llava_onevision", 112 * 111, "sees images at up to 112 x 112 pixels"),
        ("smolvlm", 55 * 56, r"in tiles of 56 x 56 pixels; expected at least 3,136"),
        ("llama", 10**6, "sees no images; remove the key"),
    ],
)
def test_max_pixels_that_a_family_cannot_keep(kind, pixels, message, checkpoint):
    with pytest.raises(ModelError, match=message):
        load_prompter(checkpoint(kind), StudentSection(max_pixels=pixels))


@pytest.mark.parametrize("kind", ["qwen2_vl", "smolvlm", "gemma3", "llava_onevision"])
def test_max_pixels_only_ever_shrinks(kind, checkpoint, rows):
    (sample,) = rows((["large.png"], "What?", None))
    stock = load_prompter(checkpoint(kind), StudentSection()).prompt_tokens(sample)
    assert load_prompter(checkpoint(kind), StudentSection(max_pixels=10**8)).prompt_tokens(sample) == stock


@pytest.mark.parametrize(("kind", "pixels"), [("qwen2_vl", 56 * 56), ("smolvlm", 56 * 56)])
def test_max_pixels_shrinks(kind, pixels, checkpoint, rows):
    (sample,) = rows((["large.png"], "What?", None))
    stock = load_prompter(checkpoint(kind), StudentSection()).prompt_tokens(sample)
    assert load_prompter(checkpoint(kind), StudentSection(max_pixels=pixels)).prompt_tokens(sample) < stock


def test_a_sample_longer_than_the_models_positions_is_refused(rows, tmp_path):
    directory = build("llama", tmp_path / "short", max_position_embeddings=64)
    prompter = load_prompter(directory, StudentSection(), max_length=10_000)
    (sample,) = rows(([], "What is it? " * 20, "A mug."))
    with pytest.raises(DataError, match=r"more than the 64 positions of Llama.*max_position_embeddings"):
        prompter.encode(sample)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_both_models_lengths_are_checked_before_a_dump(role, tmp_path):
    recipe = make_world(tmp_path, "qwen2", "llama")
    shutil.rmtree(tmp_path / role)
    kind = "qwen2" if role == "teacher" else "llama"
    build(kind, tmp_path / role, max_position_embeddings=16)
    config = ("--config", recipe, "--no-progress")
    planned = passes(fs_teacher, "plan", *config)
    assert "12 samples are too long" in planned
    assert f"the {role} {'takes ' if role == 'teacher' else ''}16" in planned
    result = run(fs_teacher, "dump", *config)
    assert result.exit_code == 2
    assert "more than the 16 positions of" in result.output
    assert not (tmp_path / "cache.zarr").exists()
    if role == "student":
        assert "12 are too long" in passes(fs_student, "plan", *config)


def test_the_students_length_is_checked_before_a_training(tmp_path):
    recipe = make_world(tmp_path, "qwen2", "qwen2")
    passes(fs_teacher, "dump", "--config", recipe, "--no-progress")
    result = run(fs_student, "train", "--config", recipe, "--no-progress", "--set", "data.max_length=30")
    assert result.exit_code == 2
    assert "more than data.max_length = 30" in result.output
    assert not (tmp_path / "run").exists()


def test_a_model_type_that_transformers_does_not_know_is_one_line(tmp_path):
    recipe = make_world(tmp_path, "qwen2", "qwen2")
    config = tmp_path / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "foo_9"}))
    for main, command in ((fs_teacher, "plan"), (fs_student, "plan")):
        result = run(main, command, "--config", recipe, "--no-progress")
        assert result.exit_code == 2, (result.output, result.exception)
        assert "student.model" in result.output
        assert "Qwen2-VL (qwen2_vl)" in result.output


def test_a_teacher_in_memory_is_checked_as_well(tmp_path, monkeypatch):
    recipe = make_world(tmp_path, "llama", "qwen2")
    stock = LlamaForCausalLM.forward

    def capped(self, *args, **kwargs):
        output = stock(self, *args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    capped.__signature__ = inspect.signature(stock)
    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    result = run(fs_student, "train", "--online", "--config", recipe, "--no-progress")
    assert result.exit_code == 2, (result.output, result.exception)
    assert "teacher: our logits differ from the model" in result.output


def test_crops_of_gemma_are_refused_by_every_plan(tmp_path):
    recipe = make_world(tmp_path, "qwen2_vl", "gemma3")
    file = tmp_path / "student" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_pan_and_scan": True}))
    for main, command in ((fs_teacher, "plan"), (fs_teacher, "dump"), (fs_student, "plan")):
        result = run(main, command, "--config", recipe, "--no-progress")
        assert result.exit_code == 2, (result.output, result.exception)
        assert "do_pan_and_scan of Gemma 3 is not supported" in result.output


def rewrite(tmp_path, change, split="train"):
    file = tmp_path / "data" / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("text", ["see <|image_pad|> there", "a<|im_end|>"])
@pytest.mark.parametrize("command", ["plan", "dump"])
def test_a_control_token_in_a_row_is_refused_with_its_place(command, text, tmp_path):
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    rewrite(tmp_path, lambda rows: rows[0]["messages"][0].update(content=text))
    result = run(fs_teacher, command, "--config", recipe, "--no-progress")
    assert result.exit_code == 2, (result.output, result.exception)
    assert "train.jsonl:1: sample 's0' has the control token" in result.output


def test_what_one_model_cannot_take_is_skipped_with_its_reason(tmp_path):
    recipe = make_world(tmp_path, "qwen2", "llama", cache={"on_error": "skip"})
    rewrite(tmp_path, lambda rows: rows[0]["messages"][0].update(content="What is it? " * 200))
    rewrite(tmp_path, lambda rows: rows[1]["messages"][0].update(content="see <|im_end|>"))
    rewrite(tmp_path, lambda rows: rows[2]["messages"][1].update(content="Yes. "))  # trimmed by one template alone
    options = ("--config", recipe, "--no-progress", "--set", "data.max_length=120")
    passes(fs_teacher, "dump", *options)
    skipped = open_cache(str(tmp_path / "cache.zarr")).skipped()
    assert sorted(reason.split(":")[1] for reason in skipped.values()) == ["1", "2", "3"]
    passes(fs_student, "train", *options)
    result = run(fs_teacher, "dump", *options, "--set", "cache.on_error=stop", "--set", "cache.path=other")
    assert result.exit_code == 2
    assert "train.jsonl:1: sample 's0' has " in result.output


def test_answers_that_may_become_too_long_are_refused_before_the_dump(tmp_path):
    recipe = make_world(tmp_path, "qwen2", "qwen2", cache={"generate_missing": True, "generate_max_tokens": 90})
    rewrite(tmp_path, lambda rows: rows[3]["messages"].pop())
    result = run(fs_teacher, "dump", "--config", recipe, "--no-progress", "--set", "data.max_length=100")
    assert result.exit_code == 2
    assert "train.jsonl:4: sample 's3' has " in result.output


def test_a_right_answer_behind_an_empty_thought_is_right(checkpoint, rows, monkeypatch):
    from phase2_student.evaluation import evaluate

    prompter = load_prompter(checkpoint("qwen3"), StudentSection())
    (sample,) = rows(([], "What is it?", "A red mug."))
    monkeypatch.setattr(evaluate, "generate_answers", lambda *_, **__: [prompter.answer_ids("A red mug.")])
    assert evaluate._answer(None, prompter, [sample], 20) == ["A red mug."]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_of_which_nothing_is_left_is_refused(split, tmp_path):
    recipe = make_world(tmp_path, "qwen2", "qwen2", cache={"on_error": "skip"})
    rewrite(
        tmp_path, lambda rows: [row["messages"][0].update(content=f"<|im_end|> {row['id']}") for row in rows], split
    )
    passes(fs_teacher, "dump", "--config", recipe, "--no-progress")
    result = run(fs_student, "train", "--config", recipe, "--no-progress")
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"the dump skipped all {8 if split == 'train' else 4} samples of {split}.jsonl" in result.output
    assert "has the control token <|im_end|>" in result.output
    assert not (tmp_path / "run").exists()
