"""The spec of a cache: what its numbers depend on, and nothing that is known only afterwards.

Phase 1 compares all of it with the store's; phase 2 compares the part that it can know without the teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.image_utils import SizeDict

from firstsight.answer_alignment import TeacherTokens
from firstsight.data.source import Turns
from firstsight.errors import RecipeError
from firstsight.families.base import Family
from firstsight.families.parts import HeadShape, head_shape
from firstsight.models.loading import load_config, weights_digest
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe, StudentSection, TeacherSection
from firstsight.vocabulary import VocabularyAlignment, table_digest, token_table
from storage.errors import CacheError
from storage.reader import read_root
from storage.store import open_store

_IMAGE_SETTINGS = (
    "size", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
    "do_convert_rgb", "patch_size", "temporal_patch_size", "merge_size",
)  # fmt: skip


def cache_spec(
    recipe: Recipe,
    *,
    teacher_directory: Path,
    teacher: Prompter,
    student: Prompter,
    alignment: VocabularyAlignment,
) -> dict[str, Any]:
    """The spec of a top_k cache that phase 1 writes into the root of the store: a JSON object."""
    teacher_part = teacher_identity(recipe, directory=teacher_directory, teacher=teacher)
    return {
        **turns_field(recipe),
        **top_k_spec(
            recipe,
            teacher=teacher_part,
            student=student,
            alignment=alignment,
            hidden_size=head_shape(load_config(teacher_directory, recipe.teacher)).hidden_size,
        ),
    }


def top_k_spec(
    recipe: Recipe, *, teacher: dict[str, Any], student: Prompter, alignment: VocabularyAlignment, hidden_size: int
) -> dict[str, Any]:
    """The spec of a top_k cache from what a spec says about its teacher, and the width of its states.

    Raises:
        RecipeError: `cache.tail_rank` is larger than a state.
    """
    return {
        "top_k": recipe.cache.top_k,
        **_tail_fields(recipe, hidden_size),
        "temperatures": list(recipe.cache.temperatures),
        "vocabulary_size": len(alignment.teacher_of_student),
        "shared_ids": alignment.shared_ranges(),
        "teacher": teacher,
        "student": student_identity(student),
        "alignment": {"kind": alignment.kind, "digest": alignment.digest},
    }


def _tail_fields(recipe: Recipe, hidden_size: int) -> dict[str, Any]:
    """The fields of a spec for `cache.tail_rank`; none if it is not set."""
    rank = recipe.cache.tail_rank
    if rank is None:
        return {}
    if rank > hidden_size:
        raise RecipeError(
            f"cache.tail_rank: expected at most {hidden_size:,}, the numbers in a state of the teacher, got {rank:,}; lower it"
        )
    return {"tail_rank": rank, "hidden_size": hidden_size}


def turns_field(recipe: Recipe) -> dict[str, Any]:
    """The field of a spec for `data.turns`; none if it means what format version 1 does, so that caches of that version still match."""
    return {"turns": "all"} if recipe.data.turns == "all" else {}


def cached_turns(spec: Mapping[str, Any]) -> Turns:
    """The `data.turns` of a cache."""
    return "all" if spec.get("turns") == "all" else "last"


def exact_spec(
    recipe: Recipe, *, teacher_directory: Path, teacher: Prompter, tokens: TeacherTokens, head: HeadShape
) -> dict[str, Any]:
    """The spec of a cache of exact targets, which depends on teacher and data alone.

    Args:
        recipe: of the dump.
        teacher_directory: with its weights.
        teacher: its prompter.
        tokens: its tokens, stored so that its answers can be read without it.
        head: its shape.
    """
    return {
        **turns_field(recipe),
        "targets": "exact",
        "hidden_size": head.hidden_size,
        "state_dtype": recipe.teacher.dtype,
        "head": {"rows": head.rows, "dtype": recipe.teacher.dtype, "bias": head.bias},
        "teacher": {
            **teacher_identity(recipe, directory=teacher_directory, teacher=teacher),
            **tokens.identity(),
        },
    }


_READING = ("end_of_turn", "answer_prefix", "earlier_prefix")
"""What the spec of an exact cache says about its teacher beyond that of a top_k cache: what is needed to read its answers."""


def teacher_of_exact(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the spec of a top_k cache would say about the teacher of an exact one."""
    return {name: value for name, value in spec["teacher"].items() if name not in _READING}


def teacher_identity(recipe: Recipe, *, directory: Path, teacher: Prompter) -> dict[str, Any]:
    """The teacher and how it is run, as every spec has it."""
    section = recipe.teacher
    return {
        "model": model_name(recipe, section),
        "revision": section.revision,
        "weights": weights_digest(directory),
        "quantization": section.quantization,
        "dtype": section.dtype,
        "attn_implementation": section.attn_implementation,
        "batch_tokens": section.batch_tokens,
        "tokens": table_digest(token_table(teacher.tokenizer)),
        "chat_template": text_digest(teacher.processor.chat_template),
        "system_prompt": recipe.data.system_prompt,
        "image_processor": image_settings(teacher.processor, teacher.family),
    }


def with_turns_of_cache(recipe: Recipe) -> Recipe:
    """The recipe with the `data.turns` of its cache if it states none itself; unchanged if no cache can be read."""
    if "turns" in recipe.data.model_fields_set:
        return recipe
    try:
        turns = cached_turns(read_root(open_store(recipe.cache_location)).spec)
    except CacheError:
        return recipe
    if turns == recipe.data.turns:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"turns": turns})})


def student_identity(student: Prompter) -> dict[str, Any]:
    """The student's tokens and special roles: what a cache's ids mean."""
    tokenizer = student.tokenizer
    identity = {
        "tokens": table_digest(token_table(tokenizer)),
        "end_of_turn": student.end_of_turn_ids,
        "eos": tokenizer.eos_token_id,
    }
    # left out if there is none, so that caches made before it existed still match
    return {**identity, "answer_prefix": student.answer_prefix} if student.answer_prefix else identity


def model_name(recipe: Recipe, section: TeacherSection | StudentSection) -> str:
    """A hub id unchanged; for a directory its last part, so that moving it changes nothing."""
    source = recipe.model_source(section)
    return Path(source).name if Path(source).is_absolute() else source


def text_digest(text: Any) -> str:
    """sha256 of a text, 64 hex digits."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def image_settings(processor: Any, family: Family) -> dict[str, Any]:
    """What decides the pixels that a model sees, as plain JSON values; empty for a text model."""
    if not family.has_vision:
        return {}
    images = processor.image_processor
    names = (*_IMAGE_SETTINGS, *family.image_settings)
    return {name: _plain(getattr(images, name, getattr(processor, name, None))) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, dict | SizeDict):
        return {str(key): _plain(item) for key, item in dict(value).items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | float | str) or value is None:
        return value
    return int(value)
