"""What a recipe states about a finished dump, compared with the specification of its cache before a training run or a derivation.

`data.system_prompt` and the name of the teacher are stated by every recipe, if only by their defaults; other settings are
compared if the recipe or an override names them. The teacher is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstsight.errors import ModelError
from firstsight.families import family_of
from firstsight.identity import cached_turns, image_settings, model_name, student_identity
from firstsight.models.loading import load_config, load_processor
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from storage.canonical import normalised
from storage.errors import SpecMismatch

Compared = tuple[str, Any, Any]
"""Dotted name, value in the cache, value of the recipe."""

_IF_NAMED = ("revision", "quantization", "dtype", "attn_implementation", "batch_tokens")
"""Keys of `teacher` that a specification holds under the same name."""
_GENERATION = {"max_tokens": "generate_max_tokens", "temperature": "generate_temperature", "seed": "generate_seed"}
"""What a specification says about generated answers, and the keys of `cache`."""


def stated(recipe: Recipe, spec: dict[str, Any]) -> list[Compared]:
    """What a recipe states about the teacher, its answers and `data.turns`; equal values included.

    Args:
        recipe: of a training run, or of a derivation.
        spec: of the cache that it takes its targets from.
    """
    teacher, section, absent = spec.get("teacher", {}), recipe.teacher, SpecMismatch.ABSENT
    compared: list[Compared] = [
        ("teacher.system_prompt", teacher.get("system_prompt", absent), recipe.data.system_prompt)
    ]
    if "turns" in recipe.data.model_fields_set:
        compared.append(("turns", cached_turns(spec), recipe.data.turns))
    name, cached_name = _teacher_name(recipe), teacher.get("model", absent)
    if not _same_model(name, cached_name):
        compared.append(("teacher.model", cached_name, name))
    named = section.model_fields_set
    compared += [
        (f"teacher.{key}", teacher.get(key, absent), getattr(section, key)) for key in _IF_NAMED if key in named
    ]
    if "max_pixels" in named:
        compared += _pixels(recipe, teacher.get("image_processor", {}))
    named, generation = recipe.cache.model_fields_set, spec.get("generation")
    if "generate_missing" in named:
        compared.append(("generation", generation is not None, recipe.cache.generate_missing))
    if generation is not None:
        compared += [
            (f"generation.{theirs}", generation.get(theirs, absent), getattr(recipe.cache, ours))
            for theirs, ours in _GENERATION.items()
            if ours in named
        ]
    return compared


def student_stated(spec: dict[str, Any], student: Prompter) -> list[Compared]:
    """A student's tokens and roles beside those that a top_k cache was made for; equal values are among it."""
    own, cached = student_identity(student), spec.get("student", {})
    absent = SpecMismatch.ABSENT
    return [(f"student.{name}", cached.get(name, absent), own.get(name, absent)) for name in {**own, **cached}]


def _pixels(recipe: Recipe, cached: dict[str, Any]) -> list[Compared]:
    """What `teacher.max_pixels` amounts to, compared as far as it can be known."""
    section = recipe.teacher
    directory = recipe.directory / Path(section.model).expanduser()
    if (directory / "config.json").is_file():
        own = image_settings(load_processor(directory, section), family_of(load_config(directory, section)))
        return [("teacher.image_processor", cached, normalised(own))]
    longest = (cached.get("size") or {}).get("longest_edge")
    if section.max_pixels is None or cached.get("merge_size") is None or longest is None:
        return []  # a limit of the processor's own, or one that is not a number of pixels
    return [("teacher.image_processor.size.longest_edge", longest, section.max_pixels)]


def _teacher_name(recipe: Recipe) -> str:
    try:
        return model_name(recipe, recipe.teacher)
    except ModelError:  # a directory that is not on this machine
        return Path(recipe.teacher.model).name


def _same_model(name: str, cached: str) -> bool:
    """Equal, or equal in their last part if one may be a directory: a name that was not found may be a hub id or a path."""
    return name == cached or (Path(name).name == Path(cached).name and not ("/" in name and "/" in cached))
