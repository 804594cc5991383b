"""What phase 2 compares with the specification of a cache: everything that its recipe states, line by line.

`data.system_prompt` and the name of the teacher are stated by every recipe, by their defaults if not by name; so are the
student's tokens, roles and rows of its head, `cache.top_k` and `cache.temperatures`, which a cache of exact targets does not depend
on. Other settings of the dump are compared where the recipe or an override names them: a recipe that is silent about
`teacher.quantization` trains on any, one that is silent about `cache.targets` on either kind, one that is silent about `data.turns`
on the answers that the cache has. The teacher need not be there;
where it is not, `teacher.max_pixels` is compared for image processors that count pixels (Qwen2-VL and its successors).
"""

from __future__ import annotations

from typing import Any

from firstsight.errors import RecipeError
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.stated import Compared, stated, student_stated
from storage.canonical import normalised
from storage.errors import SpecMismatch
from storage.exact import ExactCache
from storage.format.base import TOP_K
from storage.reader import Cache


def check_cache(recipe: Recipe, cache: Cache | ExactCache, prompter: Prompter, rows: int) -> None:
    """Compare a cache with the recipe and the student that are to be trained on it.

    Args:
        recipe: of the run.
        cache: opened.
        prompter: the student's.
        rows: of the student's head.

    Raises:
        SpecMismatch: with every difference.
        RecipeError: a key of the loss that does not go with the kind of the cache.
    """
    check_made_for(recipe, cache, prompter, rows)
    if isinstance(cache, ExactCache):
        check_loss(recipe, f"{cache.location} holds")
    else:
        check_tail(recipe, cache)


def check_made_for(recipe: Recipe, cache: Cache | ExactCache, prompter: Prompter, rows: int) -> None:
    """Compare a cache with what a recipe states of the dump, and with a student, the recipe's or another. SpecMismatch.

    An exact cache is of teacher and data alone. The other arguments are those of `check_cache`.
    """
    compared = _stated(recipe, cache)
    if not isinstance(cache, ExactCache):
        size = ("vocabulary_size", cache.spec["vocabulary_size"], rows)
        compared = [size, *student_stated(cache.spec, prompter), *compared]
    _refuse(cache, compared)


def check_tail(recipe: Recipe, cache: Cache) -> None:
    """Raise RecipeError where the loss asks for a tail's shape that a top_k cache has not."""
    if recipe.loss.tail == "shape" and not cache.tail_rank:
        raise RecipeError(
            f"loss.tail: shape: {cache.location} holds the mass of its tail alone; set loss.tail: bucket, or dump, or derive, a "
            "cache with cache.tail_rank"
        )


def check_loss(recipe: Recipe, source: str) -> None:
    """Refuse a key of the loss that has no meaning for whole distributions.

    Args:
        recipe: of the run.
        source: what gives them, for the message.

    Raises:
        RecipeError: `loss.tail` is stated.
    """
    if recipe.loss.tail is not None:
        raise RecipeError(
            f"loss.tail: {source} whole distributions, in which no entry is left over; remove the key, which is for top_k caches"
        )


def _refuse(cache: Cache | ExactCache, compared: list[Compared]) -> None:
    differences = [(name, cached, wanted) for name, cached, wanted in compared if cached != wanted]
    if differences:
        raise SpecMismatch(cache.location, differences)


def _stated(recipe: Recipe, cache: Cache | ExactCache) -> list[Compared]:
    """All that the recipe states about a dump."""
    return [*_kind(recipe, cache.spec), *stated(recipe, cache.spec)]


def _kind(recipe: Recipe, spec: dict[str, Any]) -> list[Compared]:
    """What the recipe states about the kind of the targets, and about what a top_k cache stores."""
    section, kind = recipe.cache, spec.get("targets", TOP_K)
    if "targets" in section.model_fields_set and section.targets != kind:
        return [("targets", kind, section.targets)]
    wanted: dict[str, Any] = {"top_k": section.top_k, "temperatures": normalised(list(section.temperatures))}
    named = (
        wanted if kind == TOP_K else section.model_fields_set & wanted.keys()
    )  # nothing of them is in an exact cache
    compared = [(name, spec.get(name, SpecMismatch.ABSENT), wanted[name]) for name in wanted if name in named]
    if "tail_rank" in section.model_fields_set:  # a recipe that is silent trains on either
        rank = SpecMismatch.ABSENT if section.tail_rank is None else section.tail_rank
        compared.append(("tail_rank", spec.get("tail_rank", SpecMismatch.ABSENT), rank))
    return compared
