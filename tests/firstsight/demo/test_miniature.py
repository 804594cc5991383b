"""The miniature pair: its tensors are what the processor makes, the shipped teacher sees, the student is behind it."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from firstsight.data.samples import load_samples
from firstsight.demo.miniature import STUDENT_DIR, TEACHER_DIR
from firstsight.demo.miniature.build import SPECIAL_TOKENS, build_tokenizer
from firstsight.demo.miniature.pool import Sampler, collate, make_pool
from firstsight.demo.miniature.sight import cell_labels
from firstsight.demo.synth.scenes import COLOURS, KINDS
from firstsight.demo.synth.writing import write_dataset
from firstsight.generation import generate_answers
from firstsight.pair import load_prompter
from firstsight.prompting import collate as collate_samples
from firstsight.recipe import StudentSection

QUESTIONS = 210


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("held_out") / "data"
    write_dataset(directory, train=1, validation=QUESTIONS, seed=77, progress=False)
    return load_samples(directory / "validation.jsonl", directory)


def test_the_tokenizer_is_the_same_every_time_and_loses_nothing():
    tokenizer = build_tokenizer()
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads(build_tokenizer().backend_tokenizer.to_str())
    assert len(tokenizer) == 1152
    for text in ("Where is the red mug?", "naïve café 東京 🙂\n  42", "don't"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for token in SPECIAL_TOKENS:
        assert len(tokenizer.encode(token)) == 1


def test_the_pool_is_what_processor_and_template_make(samples, models):
    prompter = load_prompter(models / "student", StudentSection(model="x"), max_length=4096)
    tokenizer = build_tokenizer()
    pool = make_pool(3, 7, workers=1)
    sampler = Sampler(pool, tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(models / "student", dtype=torch.float32)
    for sample in samples[:7]:
        encoded = prompter.encode(sample)
        branch = sampler.branch(sample.question, sample.answer, sample.category)
        index = next(i for i, clip in enumerate(pool.clips) if len(clip.frames) == len(sample.images))
        pictures = np.stack([np.asarray(image.convert("RGB").resize((112, 112), 3)) for image in sample.open_images()])
        first = pool.first[index]
        pool.frames_F[first : first + len(pictures)] = pictures
        batch = collate([sampler.row(index, [branch])], pool, 0, model.config.image_token_id)
        assert batch.inputs["input_ids"][0].tolist() == encoded.input_ids.tolist()
        assert batch.targets_N.tolist() == encoded.target_ids.tolist()
        torch.testing.assert_close(batch.inputs["pixel_values"], encoded.images["pixel_values"], atol=1e-5, rtol=0)
        with torch.inference_mode():
            ours = model.model(**batch.inputs, use_cache=False).last_hidden_state
            theirs = model.model(**collate_samples([encoded], 0), use_cache=False).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_cell_labels_name_what_lies_there():
    (clip,) = make_pool(4, 1, workers=1).clips
    labels = cell_labels(clip.frames[0]).reshape(4, 4, -1)
    for placed in clip.frames[0].placed:
        thing, colour = labels[placed.row, placed.column, :2]
        assert (KINDS[thing - 1], COLOURS[colour - 1]) == (placed.item.kind, placed.item.colour)
    assert (labels[:, :, 2] > 0).sum() == 2
    assert labels[2, 3, 4:6].tolist() == [2, 3]
    np.testing.assert_array_equal(labels[:, 1:, 7:9], labels[:, :-1, :2])  # to the left
    np.testing.assert_array_equal(labels[:, :-1, 9:11], labels[:, 1:, :2])  # to the right
    np.testing.assert_array_equal(labels[1:, :, 11:13], labels[:-1, :, :2])  # behind
    np.testing.assert_array_equal(labels[:-1, :, 13:15], labels[1:, :, :2])  # in front
    assert not labels[0, :, 11:13].any()


def test_the_heads_are_padded_to_different_sizes_and_load_as_stock_checkpoints():
    rows = []
    for directory in (TEACHER_DIR, STUDENT_DIR):
        config = AutoConfig.from_pretrained(directory)
        assert config.architectures == ["Qwen2VLForConditionalGeneration"]
        model = AutoModelForImageTextToText.from_pretrained(directory)
        assert model.dtype == torch.bfloat16
        rows.append(model.get_output_embeddings().weight.shape[0])
        assert (directory / "model.safetensors").stat().st_size < 5e6
    tokens = {len(AutoTokenizer.from_pretrained(directory)) for directory in (TEACHER_DIR, STUDENT_DIR)}
    assert len(tokens) == 1
    assert rows[0] > rows[1] > tokens.pop() >= 16 * 64


def exact(directory, samples, *, grey=False):
    prompter = load_prompter(directory, StudentSection(model="x"), max_length=512)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    right = {}
    for start in range(0, len(samples), 35):
        batch = samples[start : start + 35]
        prompts = [prompter.encode(sample, []) for sample in batch]
        if grey:
            for prompt in prompts:
                prompt.images["pixel_values"].fill_(0)
        answers = generate_answers(model, prompter, prompts, max_new_tokens=64)
        for sample, ids in zip(batch, answers, strict=True):
            text = prompter.tokenizer.decode(ids, skip_special_tokens=True)
            right.setdefault(sample.category, []).append(text == sample.answer)
    return right


def share(right):
    return float(np.mean([hit for hits in right.values() for hit in hits]))


def test_the_shipped_teacher_answers_from_the_pixels_and_the_student_is_behind(samples):
    right = exact(TEACHER_DIR, samples)
    assert share(right) >= 0.85
    assert min(np.mean(hits) for hits in right.values()) >= 0.7
    assert share(exact(TEACHER_DIR, samples, grey=True)) <= share(right) - 0.35
    assert 0.1 <= share(exact(STUDENT_DIR, samples)) <= share(right) - 0.2
