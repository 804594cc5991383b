"""Conversations of any texts: the answers' tokens spell every assistant text once and in order, what lies between them the template."""

from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstsight.data.row import parse_row
from firstsight.data.source import DataSource
from firstsight.errors import DataError
from firstsight.models.loading import load_processor
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import StudentSection

TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t "), min_size=1, max_size=12
).map(
    lambda text: normalize("NFC", text)  # as the tokenizer does
)
LIKELY = st.sampled_from(
    ["a", " a", "a ", "\n", "\n\nb\n", "user", "assistant\n", "<think>", "</think>x", "<|im_end|>", "{{ q }}"]
)
TALK = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS | LIKELY), min_size=1, max_size=6)
SOURCE = DataSource(files=(Path("t.jsonl"),), root=Path("/nowhere"))
KEEPS = "{{ m['content'][0]['text'] }}"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + KEEPS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as it is; trimmed; an answer behind a prefix that the generation prompt lacks, and one for the last alone, which loses its line ends
TEMPLATES = {
    "keeps": TEMPLATE,
    "trims": TEMPLATE.replace(KEEPS, "{{ m['content'][0]['text'] | trim }}"),
    "prefix": TEMPLATE.replace(KEEPS, "{{ ('> ' if m['role'] == 'assistant' else '') + m['content'][0]['text'] }}"),
    "last": TEMPLATE.replace(
        KEEPS,
        "{{ ('> ' + m['content'][0]['text'].lstrip('\\n')) if loop.last and m['role'] == 'assistant' else "
        "m['content'][0]['text'].split('</think>')[-1] }}",
    ),
}


@pytest.fixture(scope="module")
def prompters(models):
    def make(template):
        processor = load_processor(models / "student", StudentSection())
        processor.chat_template = template
        family = load_prompter(models / "student", StudentSection()).family
        return Prompter(processor, family, max_length=10_000, turns="all")

    return {name: make(template) for name, template in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@given(talk=TALK)
@settings(max_examples=120, deadline=None)
def test_every_answer_once_and_in_order(prompters, name, talk):
    prompter = prompters[name]
    messages = [{"role": role, "content": text} for role, text in talk]
    try:
        sample = parse_row({"messages": messages}, "t:1", SOURCE)
        encoded = prompter.encode(sample)
    except DataError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert refused.startswith("t:1")
        assert "\n" not in refused
        return
    decode, end = prompter.tokenizer.decode, "<|im_end|>"
    said = [decode(ids) for ids in encoded.turn_ids]
    assert all(text.endswith(end) for text in said)
    said = [text.removesuffix(end) for text in said]
    assert len(said) == len(sample.answers)
    for number, (text, answer) in enumerate(zip(said, sample.answers, strict=True)):
        prefix = (
            "> "
            if name == "prefix" or (name == "last" and sample.answer is not None and number == len(said) - 1)
            else ""
        )
        assert text.startswith(prefix)
        assert "".join(text.removeprefix(prefix).split()) == "".join(answer.split())
        assert name not in ("keeps", "prefix") or text == prefix + answer
    ids, start, kept = encoded.input_ids.tolist(), 0, []
    for count in encoded.turns:  # what is no answer, and then the whole
        first = int(encoded.answer_columns[len(kept) and sum(encoded.turns[: len(kept)])])
        kept.append(decode(ids[start : first + 1]))
        assert kept[-1].endswith("<|im_start|>assistant\n")
        start = first + 1 + count
    rest = decode(ids[start:])
    whole = "".join(before + text + end for before, text in zip(kept, said, strict=True)) + rest
    rendered = prompter.template.render(sample.messages, add_generation_prompt=sample.answer is None)
    assert whole == rendered.removesuffix("\n" if sample.answer is not None else "")
    assert decode(ids) == whole
    tokens, _, answers = prompter.count_tokens(sample)
    assert (tokens + sum(answers), tuple(answers)) == (len(ids), encoded.turns)
