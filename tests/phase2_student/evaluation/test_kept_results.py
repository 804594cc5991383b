"""Which kept results are used again: those of the same distance to the teacher, measured or refused. And which numbers are possible."""

import pytest
from report_cases import make_record, make_result

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.evaluation import evaluate as evaluate_module
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.evaluation.evaluate import Settings, evaluate
from phase2_student.evaluation.measure.timing import Timing
from phase2_student.evaluation.metrics.distance import TeacherCache

WRONG = {
    "cache.top_k=32": "top_k: the cache has",
    "cache.temperatures=[1.0]": "temperatures: the cache has",
    "cache.tail_rank=4": "tail_rank: the cache has",
    "teacher.quantization=nf4": "teacher.quantization: the cache has",
    "cache.path=nowhere.zarr": "nowhere.zarr",
}


@pytest.fixture
def asked(world, monkeypatch):
    """Evaluates the base with these settings; returns whether it was measured."""
    measured = []

    def note(*_):
        measured.append(1)
        return make_result([make_record(), make_record()])

    monkeypatch.setattr(evaluate_module, "_measure", note)

    def ask(*settings):
        recipe = load_recipe(world / "recipe.yaml", settings)
        before = len(measured)
        evaluate(recipe, parse_candidates(recipe, ["base"]), directory=world / "kept", limit=2, progress=False)
        return len(measured) > before

    return ask


@pytest.mark.parametrize("setting", WRONG)
def test_a_refused_distance_is_not_that_of_the_corrected_recipe(asked, world, setting):
    assert TeacherCache.of_recipe(load_recipe(world / "recipe.yaml")).refusal(load_recipe(world / "recipe.yaml")) == ""
    recipe = load_recipe(world / "recipe.yaml", [setting])
    assert WRONG[setting] in TeacherCache.of_recipe(recipe).refusal(recipe)
    assert asked(setting)
    assert not asked(setting)  # the refusal is the same
    assert asked()  # corrected
    assert not asked(setting)
    assert not asked()


def test_a_measured_distance_is_not_that_of_a_recipe_that_refuses_it(asked):
    assert asked()
    assert asked("cache.top_k=32")


def test_settings_that_the_cache_has_change_nothing(asked):
    assert asked()
    assert not asked("cache.targets=top_k")
    assert not asked("teacher.quantization=none")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(batch_size=0), "batch_size: expected a whole number of at least 1, got 0"),
        (lambda: Settings(batch_size=2.0), "batch_size: expected a whole number of at least 1, got 2.0"),
        (lambda: Settings(max_new_tokens=-1), "max_new_tokens: expected a whole number of at least 1, got -1"),
        (lambda: Timing(timed=-1), "timed: expected a whole number of at least 0, got -1"),
        (lambda: Timing(warm_up=-2), "warm_up: expected a whole number of at least 0, got -2"),
        (lambda: Timing(requests=0), "requests: expected a whole number of at least 1, got 0"),
        (lambda: Timing(repetitions=True), "repetitions: expected a whole number of at least 1, got True"),
        (lambda: Timing(batch_sizes=(4, 0)), "batch_sizes: expected a whole number of at least 1, got 0"),
        (lambda: Timing(users=("1",)), "users: expected a whole number of at least 1, got '1'"),
    ],
)
def test_numbers_that_are_not_possible_are_refused_by_name(make, message):
    with pytest.raises(RecipeError) as error:
        make()
    assert str(error.value) == message
    assert Timing(timed=0, warm_up=0, batch_sizes=(), users=()).requests == 20


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_a_limit_below_one_is_refused(world, limit):
    recipe = load_recipe(world / "recipe.yaml")
    with pytest.raises(RecipeError, match=f"limit: expected a whole number of at least 1, got {limit}"):
        evaluate(recipe, parse_candidates(recipe, ["base"]), directory=world / "kept", limit=limit, progress=False)
    with pytest.raises(RecipeError, match="candidates: expected at least one model"):
        evaluate(recipe, [], directory=world / "kept", progress=False)
