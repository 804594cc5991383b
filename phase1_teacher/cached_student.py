"""The student that a top_k cache was made for: what its ids are read with."""

from __future__ import annotations

from firstsight.errors import DataError
from firstsight.models.loading import resolve_directory
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.stated import student_stated
from storage.reader import Cache


def student_of(recipe: Recipe, cache: Cache) -> Prompter:
    """The recipe's student; DataError where the cache was made for another vocabulary."""
    student = load_prompter(resolve_directory(recipe, recipe.student, weights=False), recipe.student, recipe.data)
    if any(cached != own for _, cached, own in student_stated(cache.spec, student)):
        raise DataError(
            f"{cache.location} was made for another student vocabulary than that of student.model = {recipe.student.model}; "
            "give the recipe of this cache with --config"
        )
    return student
