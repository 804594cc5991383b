"""Ids, image tokens, inputs and answer positions are those of the model's own `apply_chat_template(..., tokenize=True)`."""

import pytest
import torch
from checkpoints import BUILDERS, VISION

from firstsight.pair import load_prompter
from firstsight.prompting import collate
from firstsight.recipe import StudentSection

ANSWER = "A red mug on the desk."
TEXTS = (([], "Where am I?", ANSWER), ([], "What is it? ", "Nothing."))
IMAGES = (
    (["small.png"], "What is it?", ANSWER),
    (["wide.png"], "Where am I?", "You are in the kitchen."),
    (["tall.png", "large.png"], "What changed?", "Nothing."),
    (["turned.jpg"], "Is it near?", "Yes."),
    (["large.png", "small.png", "wide.png"], "Which one?", "The last one."),
)


def conversation(sample, kind, *, answer):
    """The sample as a user of transformers writes it, images inside."""
    images = iter(sample.open_images())
    messages = []
    for message in sample.messages if answer else sample.prompt:
        parts = [
            {"type": "image", "image": next(images)} if part["type"] == "image" else dict(part)
            for part in message["content"]
        ]
        messages.append({"role": message["role"], "content": parts})
    if kind not in VISION:
        messages = [
            {**message, "content": "".join(part["text"] for part in message["content"])} for message in messages
        ]
    return messages


def stock(prompter, kind, sample, *, answer):
    return prompter.processor.apply_chat_template(
        conversation(sample, kind, answer=answer),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=not answer,
    )


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("system", [None, "Be short."])
def test_inputs_are_those_of_the_stock_processor(kind, system, checkpoint, rows):
    prompter = load_prompter(checkpoint(kind), StudentSection(model="x"))
    for sample in rows(*TEXTS, *(IMAGES if kind in VISION else ()), system=system):
        expected = dict(stock(prompter, kind, sample, answer=False))
        found = collate([prompter.encode(sample, [])], prompter.pad_id)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], torch.as_tensor(value)), name
        tokens, image_tokens = prompter.prompt_tokens(sample)
        assert tokens == expected["input_ids"].shape[1]
        if kind in VISION:
            token = prompter.family.image_token_id(prompter.processor)
            assert image_tokens == int((expected["input_ids"] == token).sum())
            assert (image_tokens > 0) == bool(sample.images)


@pytest.mark.parametrize("kind", BUILDERS)
def test_answers_are_those_of_the_stock_template(kind, checkpoint, rows):
    prompter = load_prompter(checkpoint(kind), StudentSection(model="x"))
    for sample in rows(*TEXTS, *(IMAGES if kind in VISION else ())):
        whole = torch.as_tensor(stock(prompter, kind, sample, answer=True)["input_ids"])[0].tolist()
        encoded = prompter.encode(sample)
        answer = encoded.target_ids.tolist()
        assert answer == prompter.answer_ids(sample.answer)
        end = len(whole) - whole[::-1].index(prompter.end_of_turn_ids[-1])
        assert whole[end - len(answer) : end] == answer
        if kind != "llava_onevision":  # its template renders another space before an answer than before a generation
            assert encoded.input_ids.tolist() == whole[:end]
        assert encoded.answer_columns.tolist() == list(
            range(len(encoded.input_ids) - len(answer) - 1, len(encoded.input_ids) - 1)
        )
        assert prompter.answer_text(answer) == sample.answer
