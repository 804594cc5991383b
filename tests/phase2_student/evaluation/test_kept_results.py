"""Which kept results are used again: those of the same distance to the teacher, measured or refused."""

import pytest
from report_cases import make_record, make_result

from firstsight.recipe import load_recipe
from phase2_student.evaluation import evaluate as evaluate_module
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.evaluation.evaluate import evaluate
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
