"""Conversations of several answers: ids are those of the whole conversation by the model's own template, every answer is a target."""

import json

import pytest
import torch
from checkpoints import BUILDERS, VISION
from test_token_exact import conversation, stock

from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from firstsight.pair import load_prompter
from firstsight.prompting import collate
from firstsight.recipe import StudentSection

IMAGE = {"type": "image"}
THOUGHT = "<think>\n\n</think>\n\n"
ENDS = {
    "gemma3": "<end_of_turn>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "llama": "<|eot_id|>",
}
# what stands before an answer before the last, and what belongs to it: the model has to say it
EARLIER = {
    "smolvlm": ("Assistant:", " "),
    "idefics3": ("Assistant:", " "),
    "gemma3": ("<start_of_turn>model\n", ""),
    "llama": ("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    "llava_onevision": ("<|im_start|>assistant \n", ""),
}
CLOSING = {**EARLIER, "qwen3": ("<|im_start|>assistant\n", THOUGHT), "llava_onevision": ("<|im_start|>assistant\n", "")}
CHATML = ("<|im_start|>assistant\n", "")


@pytest.fixture
def talk(tmp_path, rows):
    """A sample of (role, parts) with pictures; a part is a text or the name of a picture."""
    rows(([], "draws the pictures", None))

    def make(*turns, limits=None):
        messages, images = [], []
        for role, parts in turns:
            content = []
            for part in parts:
                image = part.endswith((".png", ".jpg"))
                images += [part] if image else []
                content.append({**IMAGE, **(limits or {})} if image else {"type": "text", "text": part})
            messages.append({"role": role, "content": content})
        path = tmp_path / "talk.jsonl"
        path.write_text(json.dumps({"id": "t", "messages": messages, "images": images}) + "\n")
        (sample,) = load_samples(path, tmp_path)
        return sample

    return make


def three(kind, *, closed=True):
    """Three questions, pictures in the first and the last of them where the model sees any."""
    see = kind in VISION
    turns = [
        ("system", ["Be short."]),
        ("user", [*(["small.png"] if see else []), "What is it?"]),
        ("assistant", ["A red mug."]),
        ("user", ["Where am I?"]),
        ("assistant", ["You are in the kitchen,\nat the counter."]),
        ("user", ["What changed?", *(["tall.png", "wide.png"] if see else [])]),
        ("assistant", ["Nothing."]),
    ]
    return turns if closed else turns[:-1]


@pytest.mark.parametrize("kind", BUILDERS)
def test_ids_are_those_of_the_whole_conversation(kind, checkpoint, talk):
    prompter = load_prompter(checkpoint(kind), StudentSection(), turns="all")
    sample = talk(*three(kind))
    expected = dict(stock(prompter, kind, sample, answer=True))
    whole = torch.as_tensor(expected["input_ids"])[0].tolist()
    last = len(whole) - whole[::-1].index(prompter.end_of_turn_ids[-1])
    encoded = prompter.encode(sample)
    ids = encoded.input_ids.tolist()
    if (
        kind == "llava_onevision"
    ):  # "assistant \n" in the place of the generation prompt: the last answer is behind the latter
        cut = len(ids) - encoded.turns[-1]
        assert prompter.tokenizer.decode(whole[:last]).replace("assistant \nNothing", "assistant\nNothing") == (
            prompter.tokenizer.decode(ids)
        )
        assert ids[: cut - 4] == whole[: cut - 4]
    else:
        assert ids == whole[:last]
        found = collate([encoded], prompter.pad_id)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            value = torch.as_tensor(value)
            by_token = name in ("input_ids", "attention_mask", prompter.family.token_types)
            assert torch.equal(found[name], value[:, :last] if by_token else value), name


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_mask_is_every_answer_with_its_end(kind, checkpoint, talk):
    prompter = load_prompter(checkpoint(kind), StudentSection(), turns="all")
    sample = talk(*three(kind))
    encoded = prompter.encode(sample)
    ids, decode = encoded.input_ids.tolist(), prompter.tokenizer.decode
    first, start = [], 0
    for count in encoded.turns:
        first.append(int(encoded.answer_columns[start]))
        assert encoded.answer_columns[start : start + count].tolist() == list(range(first[-1], first[-1] + count))
        start += count
    for number, (answer, own) in enumerate(zip(sample.answers, encoded.turn_ids, strict=True)):
        before, prefix = (CLOSING if number == 2 else EARLIER).get(kind, CHATML)
        assert decode(own) == prefix + answer + ENDS.get(kind, "<|im_end|>")
        assert decode(ids[: first[number] + 1]).endswith(before)
    assert prompter.turn_ids(sample) == encoded.turn_ids
    assert prompter.spelled_prefix(closing=True) == CLOSING.get(kind, CHATML)[1].encode()
    assert prompter.spelled_prefix(closing=False) == EARLIER.get(kind, CHATML)[1].encode()
    tokens, image_tokens, answers = prompter.count_tokens(sample)
    assert (tokens + sum(answers), answers) == (len(ids), list(encoded.turns))
    assert image_tokens == sum(int(types.sum()) for types in encoded.token_types.values()) or not encoded.token_types


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_conversation_that_ends_with_a_question(kind, checkpoint, talk):
    prompter = load_prompter(checkpoint(kind), StudentSection(), turns="all")
    sample = talk(*three(kind, closed=False))
    encoded = prompter.encode(sample)
    expected = torch.as_tensor(stock(prompter, kind, sample, answer=False)["input_ids"])[0].tolist()
    assert encoded.input_ids.tolist() == expected
    assert len(encoded.turns) == 2
    assert prompter.turn_count(sample) == 3
    whole = prompter.encode(talk(*three(kind)))
    assert encoded.with_answer(prompter.answer_ids("Nothing.")).input_ids.tolist() == whole.input_ids.tolist()
    assert encoded.with_answer(prompter.answer_ids("Nothing.")).turns == whole.turns


@pytest.mark.parametrize("kind", BUILDERS)
def test_of_last_only_the_closing_answer_is_a_target(kind, checkpoint, talk):
    sample = talk(*three(kind))
    encoded = load_prompter(checkpoint(kind), StudentSection(), turns="last").encode(sample)
    every = load_prompter(checkpoint(kind), StudentSection(), turns="all").encode(sample)
    assert encoded.input_ids.tolist() == every.input_ids.tolist()
    assert encoded.turns == every.turns[-1:]
    assert encoded.answer_columns.tolist() == every.answer_columns[-encoded.turns[0] :].tolist()


def test_thoughts_that_the_template_drops_are_refused_by_name(checkpoint, talk):
    prompter = load_prompter(checkpoint("qwen3"), StudentSection(), turns="all")
    thinking = ("assistant", ["<think>\nIt is red.\n</think>\n\nA red mug."])
    asked = [("user", ["What is it?"]), thinking]
    assert prompter.tokenizer.decode(prompter.encode(talk(*asked)).turn_ids[0]) == thinking[1][0] + "<|im_end|>"
    for turns in ([*asked, ("user", ["Sure?"])], [*asked, ("user", ["Sure?"]), ("assistant", ["Yes."])]):
        with pytest.raises(DataError, match=r"talk\.jsonl:1: sample 't': the chat template changes answer 1 of \d"):
            prompter.encode(talk(*turns))


def test_what_cannot_be_an_answer_is_refused_by_name(checkpoint, talk):
    prompter = load_prompter(checkpoint("qwen2_vl"), StudentSection(), turns="all")
    after = [("user", ["Sure?"]), ("assistant", ["Yes."])]
    for parts, fault in ((["small.png", "Look."], "holds an image"), ([" \n"], "is empty")):
        sample = talk(("user", ["What is it?"]), ("assistant", parts), *after)
        with pytest.raises(DataError, match=rf"answer 1 of 2 {fault}.*data\.turns: last"):
            prompter.encode(sample)
        assert len(load_prompter(checkpoint("qwen2_vl"), StudentSection(), turns="last").encode(sample).turns) == 1
    gemma = load_prompter(checkpoint("gemma3"), StudentSection(), turns="all")
    assert (
        gemma.tokenizer.decode(gemma.encode(talk(("user", ["a"]), ("assistant", [" b "]), *after)).turn_ids[0])
        == "b<end_of_turn>"
    )


def test_a_template_without_ends_has_one_answer(checkpoint, talk):
    prompter = load_prompter(checkpoint("qwen2"), StudentSection(), turns="all")
    prompter.processor.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    plain = type(prompter)(prompter.processor, prompter.family, max_length=100, turns="all")
    one = talk(("user", ["a"]), ("assistant", ["b"]))
    assert plain.tokenizer.decode(plain.encode(one).input_ids) == "user: a\nassistant: b<|im_end|>"
    with pytest.raises(DataError, match=r"marks no end of the answers before the last.*data\.turns: last"):
        plain.encode(talk(("user", ["a"]), ("assistant", ["b"]), ("user", ["c"])))


def test_a_template_that_refuses_the_roles_names_the_sample(checkpoint, talk):
    prompter = load_prompter(checkpoint("qwen2"), StudentSection(), turns="all")
    prompter.processor.chat_template = prompter.processor.chat_template.replace(
        "{%- for message in messages -%}",
        "{%- for message in messages -%}{%- if not loop.first and message['role'] == messages[loop.index0 - 1]['role'] -%}"
        "{{ raise_exception('roles must alternate') }}{%- endif -%}",
    )
    strict = type(prompter)(prompter.processor, prompter.family, max_length=200, turns="all")
    with pytest.raises(
        DataError, match=r"talk\.jsonl:1: sample 't': the model's chat template refuses .*roles must alternate"
    ):
        strict.encode(talk(("user", ["a"]), ("assistant", ["b"]), ("assistant", ["c"])))
    fine = load_prompter(checkpoint("qwen2"), StudentSection(), turns="all").encode(
        talk(("user", ["a"]), ("assistant", ["b"]), ("assistant", ["c"]))
    )
    assert [len(ids) for ids in fine.turn_ids] == [2, 2]


def test_the_conversation_helper_holds_every_message(talk):
    sample = talk(*three("qwen2_vl"))
    assert [m["role"] for m in conversation(sample, "qwen2_vl", answer=True)] == [m["role"] for m in sample.messages]
