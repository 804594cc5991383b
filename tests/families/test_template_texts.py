"""A text that a chat template leaves out is refused by name; what it only trims, escapes, moves or spells in capitals is not."""

import json
from pathlib import Path

import pytest
from templates import CHATML, GEMMA, LLAMA
from world import fs_student, fs_teacher, make_world, passes, run

from firstsight.data.row import parse_row
from firstsight.data.source import DataSource
from firstsight.errors import DataError, RecipeError
from firstsight.pair import load_prompter
from firstsight.prompting.kept import UnfitText, check_kept
from firstsight.recipe import StudentSection
from storage.reader import open_cache

NO_SYSTEM = CHATML.replace(
    "{%- for message in messages -%}", "{%- for message in messages if message['role'] != 'system' -%}"
)
REFUSES = CHATML.replace(
    "{%- for message in messages -%}",
    "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
    "{%- for message in messages -%}",
)
FIRST_PART = CHATML.replace("{%- for part in message['content'] -%}", "{%- for part in message['content'][:1] -%}")
NO_HISTORY = CHATML.replace(
    "{{- message['content'] -}}", "{{- message['content'] if message['role'] != 'assistant' or loop.last else '' -}}"
)
SAID = "message['content']"
CHANGES = {
    "trims": f"{SAID} | trim",
    "indents": f"{SAID} | indent(4)",
    "one line": f"{SAID}.split() | join(' ')",
    "JSON": f"{SAID} | tojson",
    "capitals": f"({SAID} | upper) if message['role'] != 'assistant' else {SAID}",
}
# the system text stands before the last question, as in Mistral's
MOVES = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- for message in messages if message['role'] != 'system' -%}
{{- '<|im_start|>' + message['role'] + '\\n' + (system if message['role'] == 'user' and loop.index >= loop.length - 1 else '') -}}
{{- message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
SOURCE = DataSource(files=(Path("rows.jsonl"),), root=Path("/nowhere"))
TEXT = '  Say "no" \\ or\n\n  "yäs",\tbriefly. '


def talk(*turns):
    """A sample of (role, text) or (role, list of texts)."""
    messages = [
        {"role": role, "content": said if isinstance(said, str) else [{"type": "text", "text": text} for text in said]}
        for role, said in turns
    ]
    return parse_row({"id": "t", "messages": messages}, "rows.jsonl:7", SOURCE)


@pytest.fixture
def prompter(checkpoint):
    def make(kind, template, turns="last", **options):
        plain = load_prompter(checkpoint(kind), StudentSection())
        plain.processor.chat_template = template
        return type(plain)(plain.processor, plain.family, max_length=1500, turns=turns, **options)

    return make


USER, ANSWER = ("user", "What is it?"), ("assistant", "A mug.")
DROPPED = [
    ("qwen2_vl", NO_SYSTEM, [("system", "Be brief."), USER], "system text 'Be brief.'"),
    ("qwen2_vl", NO_SYSTEM, [("system", "What is it?"), USER], "system text 'What is it?'"),
    ("qwen2_vl", NO_SYSTEM, [USER, ANSWER, ("system", "Now lie."), USER], "system text 'Now lie.'"),
    ("gemma3", GEMMA, [("system", ["Be brief.", "Never guess."]), USER], "system text 'Never guess.'"),
    ("gemma3", GEMMA, [("system", ["Be brief.", "Be brief."]), USER], "system text 'Be brief.'"),
    ("qwen2_vl", FIRST_PART, [("user", ["red lamp", "red"])], "user text 'red'"),
    ("qwen2_vl", FIRST_PART, [("user", ["a " * 50, "b\n" * 50])], "user text 'b" + r"\nb" * 19 + r"\n...'"),
    ("llama", LLAMA.replace("message['content'] | trim", "message['content'][:12]"), [("user", "What is it, then?")],
     "user text 'What is it, then?'"),
]  # fmt: skip


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize(("kind", "template", "messages", "named"), DROPPED)
def test_a_text_that_is_dropped_is_named(kind, template, messages, named, turns, prompter):
    made = prompter(kind, template, turns)
    for sample in (talk(*messages, ANSWER), talk(*messages)):
        for use in (made.encode, made.count_tokens, made.prompt_text):
            with pytest.raises(
                DataError, match=r"rows\.jsonl:7: sample 't': the chat template of .* drops the "
            ) as error:
                use(sample)
            assert named in str(error.value)
            assert "\n" not in str(error.value)


def test_an_answer_of_the_history_that_is_dropped_is_named(prompter):
    with pytest.raises(DataError, match=r"drops the assistant text 'A mug\.'; move it"):
        prompter("qwen2", NO_HISTORY).encode(talk(USER, ANSWER, ("user", "And now?"), ("assistant", "Gone.")))
    with pytest.raises(DataError, match="changes answer 1 of 2"):
        prompter("qwen2", NO_HISTORY, "all").encode(talk(USER, ANSWER, ("user", "And now?"), ("assistant", "Gone.")))


def test_thoughts_of_the_history_may_be_dropped(checkpoint):
    prompter = load_prompter(checkpoint("qwen3"), StudentSection(), turns="last")
    thought = ("assistant", "<think>\nIt is red.\n</think>\n\nA mug.")
    assert "A mug." in prompter.prompt_text(talk(USER, thought, USER, ANSWER))
    assert "It is red" not in prompter.prompt_text(talk(USER, thought, USER, ANSWER))


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize("change", [*CHANGES, "moves"])
def test_what_is_only_changed_is_taken(change, turns, prompter):
    template = MOVES if change == "moves" else LLAMA.replace(f"{SAID} | trim", f"({CHANGES[change]})")
    if change == "JSON":  # quotes around an answer would be part of it
        template = template.replace("| tojson", "| tojson if message['role'] != 'assistant' else message['content']")
    made = prompter("qwen2" if change == "moves" else "llama", template, turns, system_prompt=TEXT)
    for sample in (talk(USER, ANSWER), talk(("system", "b"), ("user", TEXT), ANSWER, ("user", "b" + TEXT), ANSWER)):
        assert len(made.encode(sample).turns) == (1 if turns == "last" else len(sample.answers))


@pytest.mark.parametrize(
    ("template", "fault"), [(NO_SYSTEM, "drops it"), (REFUSES, r"refuses it \(System role not .*\)")]
)
@pytest.mark.parametrize("text", ["Answer only in French.", "q", "user"])
def test_a_system_prompt_without_a_place_is_refused_at_once(template, fault, text, prompter):
    with pytest.raises(
        RecipeError, match=rf"^data\.system_prompt: the chat template of Qwen2-VL {fault}; remove the key"
    ):
        prompter("qwen2_vl", template, system_prompt=text)
    assert prompter("qwen2_vl", CHATML, system_prompt=text).system_prompt == text
    assert prompter("qwen2_vl", CHATML, system_prompt="").system_prompt == ""


def test_the_commands_say_it_in_one_line(tmp_path):
    recipe = make_world(tmp_path, "qwen2_vl", "qwen2_vl")
    passes(fs_teacher, "dump", "--config", recipe, "--no-progress")
    for role in ("teacher", "student"):
        (tmp_path / role / "chat_template.jinja").write_text(NO_SYSTEM)
    asked = ("--config", recipe, "--no-progress", "--set", "data.system_prompt=French")
    for main, command in ((fs_teacher, "plan"), (fs_teacher, "dump"), (fs_student, "plan"), (fs_student, "train")):
        result = run(main, command, *asked)
        assert result.exit_code == 2, (result.output, result.exception)
        assert result.output.count("Error: data.system_prompt: the chat template of Qwen2-VL drops it") == 1
    file = tmp_path / "data" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["messages"].insert(0, {"role": "system", "content": "French"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("--config", recipe, "--no-progress", "--set", "cache.path=other")
    result = run(fs_teacher, "dump", *own)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "train.jsonl:3: sample 's2': the chat template of Qwen2-VL drops the system text 'French'" in result.output
    passes(fs_teacher, "dump", *own, "--set", "cache.on_error=skip")
    assert len(open_cache(str(tmp_path / "other")).skipped()) == 1


@pytest.mark.parametrize(
    ("texts", "rendered", "missing"),
    [
        (["a b", "a"], "<ab>", "a"),
        (["a", "a b"], "<a b>", "a"),
        (["a", "a b"], "<a b><a>", None),
        (["", " \n"], "", None),
        (["straße"], "STRASSE", None),
        (['{"a": "\\n"}'], json.dumps('{"a": "\\n"}'), None),
        (["é\n"], "caf\\u00e9\\n", None),
        (["x</think>y"], "y", "x</think>y"),
    ],
)
def test_each_text_has_a_place_of_its_own(texts, rendered, missing):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]} for text in texts]
    if missing is None:
        check_kept(messages, rendered)
    else:
        with pytest.raises(UnfitText) as error:
            check_kept(messages, rendered)
        assert str(error.value) == f"drops the user text {missing!r}"
