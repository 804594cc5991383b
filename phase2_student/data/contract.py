"""What phase 2 compares with the specification of a cache: everything that its recipe states, line by line.

Every recipe states `data.system_prompt` and the name of the teacher, at least by their defaults. The same is true of the
student's tokens and roles, the rows of its head, `cache.top_k` and `cache.temperatures`; a cache of exact targets does not depend
on these. Other settings of the dump are compared only if the recipe or an override names them: without `teacher.quantization` a
recipe trains on any, without `cache.targets` on either kind, without `data.turns` on the answers that the cache has.
The teacher need not exist.
If it does not, `teacher.max_pixels` is compared for image processors that count pixels (Qwen2-VL and its successors).
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
        recipe: the run's recipe.
        cache: an open cache.
        prompter: the student's prompter.
        rows: number of rows in the student's head.

    Raises:
        SpecMismatch: the two differ; lists every difference.
        RecipeError: a key of the loss is not possible with this kind of cache.
    """
    check_made_for(recipe, cache, prompter, rows)
    if isinstance(cache, ExactCache):
        check_loss(recipe, f"{cache.location} holds")
    else:
        check_tail(recipe, cache)


def stated_differences(recipe: Recipe, cache: Cache | ExactCache) -> list[Compared]:
    """What a recipe states about the dump and the cache does not have: `check_made_for` refuses these for every student."""
    return _different(_stated(recipe, cache))


def check_made_for(recipe: Recipe, cache: Cache | ExactCache, prompter: Prompter, rows: int) -> None:
    """Compare a cache with what a recipe states about the dump, and with a student. Raises SpecMismatch.

    An exact cache is of teacher and data alone. The other arguments are those of `check_cache`.
    """
    compared = _stated(recipe, cache)
    if not isinstance(cache, ExactCache):
        size = ("vocabulary_size", cache.spec["vocabulary_size"], rows)
        compared = [size, *student_stated(cache.spec, prompter), *compared]
    _refuse(cache, compared)


def check_tail(recipe: Recipe, cache: Cache) -> None:
    """Raise RecipeError if the loss needs a tail's shape and the top_k cache has none."""
    if recipe.loss.tail == "shape" and not cache.tail_rank:
        raise RecipeError(
            f"loss.tail: shape: {cache.location} holds only the mass of its tail; set loss.tail: bucket, or dump or derive a "
            "cache with cache.tail_rank"
        )


def check_loss(recipe: Recipe, source: str) -> None:
    """Refuse a key of the loss that has no meaning for whole distributions.

    Args:
        recipe: the run's recipe.
        source: what gives the distributions, for the message.

    Raises:
        RecipeError: `loss.tail` is stated.
    """
    if recipe.loss.tail is not None:
        raise RecipeError(
            f"loss.tail: {source} whole distributions, which have no tail; remove the key, it is for top_k caches"
        )


def _refuse(cache: Cache | ExactCache, compared: list[Compared]) -> None:
    if differences := _different(compared):
        raise SpecMismatch(cache.location, differences)


def _different(compared: list[Compared]) -> list[Compared]:
    return [(name, cached, wanted) for name, cached, wanted in compared if cached != wanted]


def _stated(recipe: Recipe, cache: Cache | ExactCache) -> list[Compared]:
    """All that the recipe states about a dump."""
    return [*_kind(recipe, cache.spec), *stated(recipe, cache.spec)]


def _kind(recipe: Recipe, spec: dict[str, Any]) -> list[Compared]:
    """What the recipe states about the kind of the targets, and about what a top_k cache stores."""
    section, kind = recipe.cache, spec.get("targets", TOP_K)
    if "targets" in section.model_fields_set and section.targets != kind:
        return [("targets", kind, section.targets)]
    wanted: dict[str, Any] = {"top_k": section.top_k, "temperatures": normalised(list(section.temperatures))}
    named = wanted if kind == TOP_K else section.model_fields_set & wanted.keys()  # an exact cache has neither
    compared = [(name, spec.get(name, SpecMismatch.ABSENT), wanted[name]) for name in wanted if name in named]
    if "tail_rank" in section.model_fields_set:  # without it a recipe trains on either
        rank = SpecMismatch.ABSENT if section.tail_rank is None else section.tail_rank
        compared.append(("tail_rank", spec.get("tail_rank", SpecMismatch.ABSENT), rank))
    return compared
