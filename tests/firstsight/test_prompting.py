"""Where the answer is: the row of a token sits at the position before it, for every sample of a padded batch."""

import json
import shutil

import pytest
import torch
from PIL import Image

from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from firstsight.families import family_of
from firstsight.generation import generate_answers
from firstsight.models.loading import backbone_states, load_config, load_processor, load_student
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter, answer_index, collate
from firstsight.recipe import StudentSection


@pytest.fixture(scope="module")
def section(models):
    return StudentSection(model=str(models / "student"), dtype="float32")


@pytest.fixture(scope="module")
def prompter(models, section):
    return load_prompter(models / "student", section, max_length=200)


@pytest.fixture(scope="module")
def model(models, section):
    return load_student(models / "student", section, dtype=torch.float32).eval()


@pytest.fixture
def load(tmp_path):
    for name, size in (("a.png", (56, 56)), ("b.png", (112, 84))):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / name)

    def make(*questions):
        rows = []
        for number, (images, text, answer) in enumerate(questions):
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
            messages = [{"role": "user", "content": content}]
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            rows.append({"id": f"s{number}", "messages": messages, "images": images})
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_samples(path, tmp_path)

    return make


THREE = (
    (["a.png"], "What is it?", "A red mug on the desk."),
    (["a.png", "b.png"], "What changed?", "Nothing."),
    (["b.png"], "Where am I?", "You are in the kitchen, at the counter."),
)


def test_answer_ids_end_the_turn_once(prompter):
    ids = prompter.answer_ids("A red mug.")
    end = prompter.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompter.end_of_turn_ids == [end]
    assert ids[-1] == end
    assert ids.count(end) == 1
    assert prompter.tokenizer.decode(ids[:-1]) == "A red mug."


def test_the_rows_of_an_answer_sit_one_before_its_tokens(prompter, load):
    batch = [prompter.encode(sample) for sample in load(*THREE)]
    inputs = collate(batch, pad_id=0)
    rows, columns = answer_index(batch)
    assert torch.equal(inputs["input_ids"][rows, columns + 1], torch.cat([sample.target_ids for sample in batch]))
    for number, sample in enumerate(batch):
        first = columns[rows == number][0]
        before = prompter.tokenizer.decode(inputs["input_ids"][number, : first + 1])
        assert before.endswith("<|im_start|>assistant\n")
        assert inputs["attention_mask"][number].sum() == len(sample.input_ids)


def test_padding_and_neighbours_do_not_change_the_states(prompter, load, model):
    batch = [prompter.encode(sample) for sample in load(*THREE)]
    with torch.inference_mode():
        together = backbone_states(model, collate(batch, 0), *answer_index(batch))
        alone = torch.cat([backbone_states(model, collate([one], 0), *answer_index([one])) for one in batch])
        logits = model(**collate(batch[1:2], 0)).logits[0]
        mine = model.lm_head(together[batch[0].positions : batch[0].positions + batch[1].positions])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine, logits[batch[1].answer_columns], atol=1e-4, rtol=1e-4)


def test_prompt_tokens_are_counted_without_opening_an_image(prompter, load):
    for sample in load(*THREE):
        encoded = prompter.encode(sample, [])
        tokens, image_tokens = prompter.prompt_tokens(sample)
        assert tokens == len(encoded.input_ids)
        assert encoded.positions == 0
        assert image_tokens == int((encoded.token_types["mm_token_type_ids"] == 1).sum())


def test_generated_answers_equal_one_by_one_decoding(prompter, load, model):
    prompts = [prompter.encode(sample, []) for sample in load(*THREE)]
    answers = generate_answers(model, prompter, prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = collate([prompt], 0)
        for token in answer:
            with torch.inference_mode():
                assert int(model(**inputs).logits[0, -1].argmax()) == token
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)


def test_a_control_token_in_the_text_is_refused(prompter, load):
    (sample,) = load((["a.png"], "What <|image_pad|> is it?", "A mug."))
    with pytest.raises(DataError, match=r"control token <\|image_pad\|>"):
        prompter.encode(sample)


def test_a_sample_that_is_too_long_is_refused_never_cut(prompter, load):
    (sample,) = load((["a.png"], "What? " * 200, "A mug."))
    with pytest.raises(DataError, match=r"more than data\.max_length = 200"):
        prompter.encode(sample)


def test_inputs_are_those_of_the_models_own_processor(prompter, load):
    texts = (["a.png", "b.png", "a.png"], "Which one?", None), ([], "What is a mug?", None)
    for sample in load(*THREE, *texts):
        found = prompter.encode(sample, [])
        text, images = prompter.prompt_text(sample), sample.open_images()
        expected = prompter.processor(text=[text], images=images or None, return_tensors="pt")
        assert torch.equal(found.input_ids, expected["input_ids"][0])
        assert torch.equal(found.token_types["mm_token_type_ids"], torch.as_tensor(expected["mm_token_type_ids"])[0])
        for name in ("pixel_values", "image_grid_thw"):
            assert (name in expected) == bool(images) == (name in found.images)
            assert not images or torch.equal(found.images[name], expected[name])


def test_a_template_that_leaves_an_image_out_is_refused(models, section, load):
    processor = load_processor(models / "student", section)
    processor.chat_template = processor.chat_template.replace("<|image_pad|>", "")
    with pytest.raises(DataError, match=r"sample .* renders 0 of its 1 image, expected one place for each"):
        Prompter(processor, family_of(load_config(models / "student", section)), max_length=200).encode(
            load(THREE[0])[0]
        )


def test_max_pixels_belongs_to_the_section(models):
    small = load_processor(models / "student", StudentSection(model="x", max_pixels=56 * 56))
    large = load_processor(models / "student", StudentSection(model="x"))
    image = Image.new("RGB", (224, 224))
    counts = [p.image_processor(image, return_tensors="pt")["image_grid_thw"].prod().item() for p in (small, large)]
    assert counts == [16, 64]


def test_a_saved_processor_loads_again(prompter, models, tmp_path, load):
    prompter.processor.save_pretrained(tmp_path / "saved")
    shutil.copy(models / "student" / "config.json", tmp_path / "saved")
    again = load_prompter(tmp_path / "saved", StudentSection(model="x"), max_length=200)
    (sample,) = load(THREE[1])
    before, after = prompter.encode(sample), again.encode(sample)
    assert torch.equal(before.input_ids, after.input_ids)
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(before.images[name], after.images[name])
