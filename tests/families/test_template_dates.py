"""A chat template that reads the clock renders one date, whatever the day of a dump, of training or of evaluation."""

import datetime

import pytest
from checkpoints import VISION
from templates import CHATML, GEMMA, LLAMA
from test_token_exact import conversation
from transformers.utils import chat_template_utils
from world import make_world, passes

from firstsight.families.clock import template_of_one_day
from firstsight.pair import clock_note, load_prompter
from firstsight.recipe import StudentSection, load_recipe
from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student
from phase2_student.training.prepare import prepare
from storage.reader import open_cache

# Llama 3.2's own lines about the date
LLAMA_DATE = """\
{%- if not date_string is defined -%}
{%- if strftime_now is defined -%}{%- set date_string = strftime_now("%d %b %Y") -%}
{%- else -%}{%- set date_string = "26 Jul 2024" -%}{%- endif -%}
{%- endif -%}
"""
DATED = {
    "llama": LLAMA_DATE
    + LLAMA.replace("{{- bos_token -}}", "{{- bos_token + 'Today Date: ' + date_string + '\\n\\n' -}}"),
    "qwen2": "{%- macro today() -%}{{- strftime_now('%A %H:%M') -}}{%- endmacro -%}{{- today() + '\\n' -}}" + CHATML,
    "qwen2_vl": CHATML.replace(
        "{%- for part",
        "{%- if message['role'] == 'user' -%}{{- strftime_now(format='%x %%d') -}}{%- endif -%}{%- for part",
    ),
    "gemma3": GEMMA.replace("{{- bos_token -}}", "{{- bos_token + strftime_now('%Y-%m-%d') -}}"),
}


@pytest.fixture
def clock(monkeypatch):
    """Sets the day that transformers' own clock of templates gives."""

    def put(year, month, day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls):
                return datetime.datetime(year, month, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return put


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize("kind", DATED)
def test_the_date_is_that_of_the_template_without_a_clock(kind, turns, checkpoint, rows, clock):
    samples = rows(
        ([], "Where am I?", "Here."), *([(["small.png"], "What is it?", "A mug.")] if kind in VISION else [])
    )
    plain = load_prompter(checkpoint(kind), StudentSection(), turns=turns)
    plain.processor.chat_template = DATED[kind]
    found = []
    for day in ((2026, 11, 1), (2026, 11, 2)):
        clock(*day)
        prompter = type(plain)(plain.processor, plain.family, max_length=1500, turns=turns)
        found.append([prompter.prompt_text(sample) for sample in samples])
        found.append([prompter.encode(sample).input_ids.tolist() for sample in samples])
    assert found[:2] == found[2:]
    stock = plain.processor.apply_chat_template
    talks = [conversation(sample, kind, answer=False) for sample in samples]
    other = [stock(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    clock(2024, 7, 26)
    assert found[0] == [stock(talk, tokenize=False, add_generation_prompt=True) for talk in talks] != other
    if kind == "llama":
        assert all("Today Date: 26 Jul 2024" in text for text in found[0])


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%-d. %B %y, %A", "%%d%%%d %", "%H:%M:%S %p %j", "%x %c", "no day", "%F", "100%% %-m/%-d", ""]
)
@pytest.mark.parametrize("around", ["{}", "\n  {}\n", "  {{%- if true %}}\n{}{{% endif %}}"])
def test_every_directive_is_that_of_the_stock_function(form, around, checkpoint, clock):
    tokenizer = load_prompter(checkpoint("llama"), StudentSection()).tokenizer
    tokenizer.chat_template = around.format(f"{{{{ strftime_now({form!r}) }}}}")
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], chat_template=template_of_one_day(tokenizer), tokenize=False
    )
    clock(2024, 7, 26)
    assert made == tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)


def test_only_such_a_template_is_noted(checkpoint):
    plain, dated = (load_prompter(checkpoint("llama"), StudentSection()) for _ in range(2))
    dated.processor.chat_template = DATED["llama"]
    assert clock_note(plain, plain) is None
    note = clock_note(plain, dated)
    assert note == clock_note(dated, dated)
    assert "Llama, SmolLM2 (text) reads the clock; it is 26 July 2024 in every prompt" in note


def test_both_phases_see_one_date(tmp_path, clock):
    recipe = make_world(tmp_path, "llama", "llama")
    for role in ("teacher", "student"):
        (tmp_path / role / "chat_template.jinja").write_text(DATED["llama"])
    options = ("--config", recipe, "--no-progress")
    note = "it is 26 July 2024 in every prompt"
    cached, trained = [], []
    for day in (1, 2):
        clock(2026, 11, day)
        own = (*options, "--set", f"cache.path=c{day}", "--set", f"training.output_dir=run{day}")
        for main in (fs_teacher, fs_student):
            assert note in passes(main, "plan", *own)
        assert note in passes(fs_teacher, "dump", *own)
        cache = open_cache(str(tmp_path / f"c{day}"))
        cached.append({key: cache[key].targets.logprobs.tolist() for key in sorted(cache)})
        made = load_recipe(recipe, [f"cache.path=c{day}"])
        trained.append([prepare(made, progress=False).train[index].encoded.input_ids.tolist() for index in range(8)])
    assert cached[0] == cached[1]
    assert trained[0] == trained[1]
    passes(fs_student, "train", *own)
