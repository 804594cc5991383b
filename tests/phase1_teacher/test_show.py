"""One sample as the teacher saw it."""

import re

import pytest
from click.testing import CliRunner

from phase1_teacher.cli import main
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.show import probability_text
from storage.reader import open_cache


def run(*arguments: str):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fs-teacher")


def dumped(workshop, rows, **sections):
    recipe = workshop.load(rows, **sections)
    dump(prepare_dump(recipe, progress=False), progress=False)
    return recipe


def test_a_sample_in_the_terminal_and_as_a_page(workshop):
    rows = workshop.rows(6)
    rows[2]["messages"][0]["content"][1]["text"] = "is <b>this</b> & that?"
    recipe = dumped(workshop, rows)
    page = workshop.directory / "s2.html"
    output = run("show", recipe.cache_location, "--sample", "s2", "--html", page)
    assert output.exit_code == 0, output.output
    assert "question  is <b>this</b> & that?" in output.output
    assert output.output.count("not stored") == len(
        prepare_dump(recipe, progress=False).pair.student.answer_ids(rows[2]["messages"][1]["content"][0]["text"])
    )
    text = page.read_text()
    assert "is &lt;b&gt;this&lt;/b&gt; &amp; that?" in text
    assert "<b>" not in text
    assert "data:image/png;base64," in text
    assert "http" not in text
    assert "<script" not in text
    key = next(iter(open_cache(recipe.cache_location).keys()))
    assert run("show", recipe.cache_location, "--sample", key[:12]).exit_code == 0


@pytest.mark.parametrize("turns", ["all", "last"])
def test_without_a_name_any_sample_is_shown_with_the_whole_conversation(workshop, turns):
    rows = workshop.rows(3)
    for row in rows:
        question, answer = row["messages"]
        asked = {
            "role": "user",
            "content": [*question["content"][:1], {"type": "text", "text": "what is on the table?"}],
        }
        said = {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]}
        row["messages"] = [
            *(asked, said),
            *({"role": "user", "content": [{"type": "text", "text": "and beside it?"}]}, answer),
        ]
    recipe = dumped(workshop, rows, data={"system_prompt": "Be brief.", "turns": turns})
    output = run("show", recipe.cache_location, "--html", workshop.directory / "any.html")
    assert output.exit_code == 0, output.output
    assert output.output.startswith("s0  ")
    first = {
        "all": "question  what is on the table?\nanswer    A cup.\n",
        "last": "user      [image] what is on the table?\nassistant A cup.\n",
    }[turns]
    assert f"system    Be brief.\n{first}" in output.output
    assert "question  and beside it?\nanswer    " in output.output
    text = (workshop.directory / "any.html").read_text()
    for words in ("Be brief.", "what is on the table?", "and beside it?", *(["A cup."] if turns == "last" else [])):
        assert words in text  # an answer with targets stands there token by token


def test_no_sample_of_another_cache_is_shown(workshop):
    recipe = dumped(workshop, workshop.rows(3))
    rows = workshop.rows(3)
    for row in rows:
        row["messages"][0]["content"][1]["text"] = "edited"
    workshop.recipe(rows)
    output = run("show", recipe.cache_location)
    assert output.exit_code == 2
    assert "holds none of the samples of this recipe" in output.output


def test_a_small_probability_keeps_its_order_of_magnitude():
    assert [probability_text(p) for p in (1.0, 0.0123, 0.0005, 0.00049, 3e-7, 0.0)] == [
        *("1.000", "0.012", "0.001", "5e-04", "3e-07", "0.000")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample", "nobody"], "none of the 6 samples of this recipe has the id 'nobody'"),
        (["--sample", "s1", "--temperature", "9"], "temperature 9 lies outside the cache's nodes"),
        (["--sample", "s1", "--config", "no.yaml"], "recipe no.yaml not found"),
    ],
)
def test_what_cannot_be_shown(workshop, arguments, message):
    recipe = dumped(workshop, workshop.rows(6))
    output = run("show", recipe.cache_location, *arguments)
    assert output.exit_code == 2
    assert re.search(message, output.output), output.output


def test_samples_without_targets_cannot_be_shown(workshop):
    rows = workshop.rows(6)
    recipe = dumped(workshop, rows)
    rows[1]["messages"][0]["content"][1]["text"] = "edited"
    workshop.recipe(rows)
    output = run("show", recipe.cache_location, "--sample", "s1")
    assert output.exit_code == 2
    assert "edited since the dump, or not dumped yet; run fs-teacher dump" in output.output
