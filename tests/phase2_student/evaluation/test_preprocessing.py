"""A run carries how its inputs were made: eval, ask and the card use that, and say where models differ."""

import json
import shutil

import pytest
from click.testing import CliRunner
from report_cases import make_runs

from firstsight.errors import ModelError
from firstsight.pair import load_prompter
from firstsight.recipe import StudentSection, load_recipe
from phase2_student.cli import main
from phase2_student.evaluation.ask import LoadedStudent
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.evaluation.evaluate import Settings, evaluate
from phase2_student.evaluation.measure.timing import Timing
from phase2_student.evaluation.summary import preprocessing_lines, summary_text
from phase2_student.release.card import model_card
from phase2_student.release.export import export
from phase2_student.runs.preprocessing import PREPROCESSING, Preprocessing, preprocessing_of, read_preprocessing
from phase2_student.runs.records import read_runs

PROMPT = "You see through 'my' eyes.\nAnswer in one line. ```"


def invoke(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def trained(made_world, tmp_path_factory):
    """A run of one step with small images and a system prompt, in `runs/small`."""
    from phase1_teacher.dump import dump, prepare_dump

    place = tmp_path_factory.mktemp("preprocessing")
    shutil.copy(made_world / "recipe.yaml", place / "recipe.yaml")
    for name in ("models", "data"):
        (place / name).symlink_to(made_world / name)
    settings = {
        "student.max_pixels": 3136,
        "data.system_prompt": PROMPT,
        "data.train": "validation.jsonl",
        "training.max_steps": 1,
        "training.output_dir": "runs/small",
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    dump(prepare_dump(load_recipe(place / "recipe.yaml", overrides), progress=False), progress=False)
    options = [part for each in overrides for part in ("--set", each)]
    invoke("train", "--config", place / "recipe.yaml", "--no-progress", *options)
    return place


def test_a_run_and_what_it_saves_carry_it(trained):
    run = trained / "runs" / "small"
    for directory in (run, run / "best", run / "final"):
        own = read_preprocessing(directory)
        assert (own.max_pixels, own.system_prompt) == (3136, PROMPT)
        assert len(own.chat_template) == 64
        assert (directory / PREPROCESSING).is_file()
    checkpoint = next(run.glob("checkpoint-*"), None)
    assert checkpoint is None or read_preprocessing(checkpoint) == read_preprocessing(run)


def measured(place, *overrides):
    recipe = load_recipe(place / "recipe.yaml", overrides)
    candidates = parse_candidates(recipe, ["base", f"small={place / 'runs' / 'small' / 'best'}"])
    timing = Timing(timed=1, warm_up=0, batch_sizes=(), users=(1,), requests=1)
    settings = Settings(batch_size=4, max_new_tokens=4, timing=timing)
    return evaluate(recipe, candidates, directory=place / "evaluation", settings=settings, progress=False)


def test_a_model_is_measured_under_its_own_settings(trained):
    """Whatever the recipe of the evaluation says: distance and answers of one student are always the same."""
    prompt = f"data.system_prompt={json.dumps(PROMPT)}"
    found = [measured(trained, prompt, "student.max_pixels=784"), measured(trained, prompt), measured(trained)]
    for number, evaluation in enumerate(found):
        base, own = evaluation.models
        assert (own.preprocessing.origin, own.preprocessing.max_pixels) == ("run", 3136)
        assert (own.preprocessing.system_prompt, own.preprocessing.turns) == (PROMPT, "all")
        assert base.preprocessing.origin == "recipe"
        assert base.preprocessing.max_pixels == (784 if number == 0 else None)
        assert base.preprocessing.system_prompt == (PROMPT if number < 2 else None)
        assert [record.answer for record in own.samples] == [record.answer for record in found[0].models[1].samples]
        text = summary_text(evaluation)
        assert "small from its own run; base from the recipe, since its directory records none." in text
        assert f"They differ in max_pixels: base {'784' if number == 0 else 'the processor'}" in text
        assert (f"They differ in system prompt: base the template's default, small {json.dumps(PROMPT)}." in text) == (
            number == 2
        )
    distances = [[record.kl_sum for record in evaluation.models[1].samples] for evaluation in found[:2]]
    assert distances[0] == distances[1]
    assert None not in distances[0]
    of_base = [[record.kl_sum for record in evaluation.models[0].samples] for evaluation in found[:2]]
    assert of_base[0] != of_base[1]  # what a base sees is the recipe's


def test_the_inputs_are_those_of_the_run(trained):
    recipe = load_recipe(trained / "recipe.yaml", ["student.max_pixels=784"])
    (own,) = parse_candidates(recipe, [f"small={trained / 'runs' / 'small' / 'best'}"])
    prompter = own.prompter()
    assert prompter.processor.image_processor.size["longest_edge"] == 3136
    assert prompter.system_prompt == PROMPT
    (base,) = parse_candidates(recipe, ["base"])
    assert base.prompter().processor.image_processor.size["longest_edge"] == 784


def test_an_export_carries_it(trained, tmp_path):
    section = StudentSection(dtype="bfloat16")
    export(trained / "runs" / "small" / "best", tmp_path / "int8", section, "int8")
    assert read_preprocessing(tmp_path / "int8").system_prompt == PROMPT


def test_a_run_of_before_is_read_from_its_recipe(trained, tmp_path):
    run = shutil.copytree(trained / "runs" / "small", tmp_path / "old")
    for directory in (run, run / "best", run / "final"):
        (directory / PREPROCESSING).unlink()
    assert read_preprocessing(run / "best") == Preprocessing(
        max_pixels=3136, system_prompt=PROMPT, turns=None, chat_template=None
    )
    (run / "run.json").unlink()
    assert read_preprocessing(run / "best") is None
    assert read_preprocessing(trained / "models" / "student") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"max_pixels": "3", "system_prompt": null, "turns": null, "chat_template": null}',
        '{"max_pixels": 0}',
    ],
)
def test_a_damaged_file_is_one_line(models, tmp_path, content):
    directory = shutil.copytree(models / "student", tmp_path / "student")
    (directory / PREPROCESSING).write_text(content)
    with pytest.raises(ModelError, match="this is not the preprocessing of a run"):
        read_preprocessing(directory)
    done = invoke("ask", "--model", directory, "What?", code=2)
    assert done.stderr.count("\n") == 1


def test_ask_uses_it_unless_told_otherwise(trained):
    best = trained / "runs" / "small" / "best"
    student = LoadedStudent(best, StudentSection())
    assert student.prompter.system_prompt == PROMPT
    assert student.prompter.processor.image_processor.size["longest_edge"] == 3136
    assert "max_pixels 3,136" in student.description
    other = LoadedStudent(best, StudentSection(max_pixels=784), system_prompt="Be brief.")
    assert other.prompter.system_prompt == "Be brief."
    assert other.prompter.processor.image_processor.size["longest_edge"] == 784


@pytest.mark.parametrize("kind", ["sees", "text"])
@pytest.mark.parametrize("prompt", [PROMPT, None, 'say "it"', "naïve \u2028 line"])
def test_the_cards_code_has_the_system_prompt(tmp_path, kind, prompt):
    (run,) = make_runs(tmp_path, names=("distilled",))
    if kind == "text":
        (run / "best" / "config.json").write_text('{"model_type": "llama"}')
    Preprocessing(max_pixels=None, system_prompt=prompt, turns="all", chat_template=None).write(run / "best")
    card = str(model_card(read_runs([run])[0], None, None, None, repo="me/s", license=None))
    code = card.split("```python\n")[1].split("\n```")[0]
    begin = code.index("messages = ")
    found = {}
    exec(code[begin : code.index("inputs = ")], found)
    first = found["messages"][0]
    if prompt is None:
        assert [message["role"] for message in found["messages"]] == ["user"]
    else:
        content = first["content"] if kind == "text" else first["content"][0]["text"]
        assert (first["role"], content) == ("system", prompt)


def test_what_differs_is_said_for_any_number_of_models():
    from report_cases import make_record, make_result

    def model(name, **settings):
        settings = {"origin": "run", "max_pixels": None, "system_prompt": None, "chat_template": "ab" * 32, **settings}
        return make_result([make_record()]).model_copy(update={"name": name, "preprocessing": input_settings(settings)})

    def input_settings(settings):
        from phase2_student.evaluation.results import InputSettings

        return InputSettings(**settings)

    alike = preprocessing_lines([model("a"), model("b")])
    assert alike == ["Image size and system prompt: a, b from its own run."]
    lines = preprocessing_lines([model("a"), model("b", chat_template="cd" * 32), model("c", origin="recipe")])
    assert lines == [
        "Image size and system prompt: a, b from its own run; c from the recipe, since its directory records none.",
        f"They differ in chat template: a {'ab' * 6}, b {'cd' * 6}, c {'ab' * 6}.",
    ]
    lines = preprocessing_lines([model("a", turns="all"), model("b", turns="last")])
    assert lines[1:] == ["They differ in turns: a all, b last."]
    assert preprocessing_lines([make_result([make_record()])]) == []


def test_it_is_that_of_the_recipe_and_the_template(made_world):
    recipe = load_recipe(made_world / "recipe.yaml", ["data.system_prompt=Look."])
    prompter = load_prompter(made_world / "models" / "student", recipe.student, recipe.data)
    own = preprocessing_of(recipe, prompter)
    assert (own.max_pixels, own.system_prompt, own.turns) == (None, "Look.", "all")
    prompter.processor.chat_template += " "
    assert preprocessing_of(recipe, prompter).chat_template != own.chat_template
