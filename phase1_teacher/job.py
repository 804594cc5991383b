"""What a dump needs before the teacher's weights are loaded: data, tokenizers, alignment, the planned cache.

job = prepare(recipe)          # everything that can be refused is refused here
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from firstsight.errors import DataError
from firstsight.identity import cache_spec
from firstsight.models import head_rows, load_config, load_processor, resolve_directory
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.samples import Sample, check_files
from firstsight.vocabulary import Token, VocabularyAlignment, align_vocabularies, token_table
from phase1_teacher.sample_index import SampleIndex
from storage.plan import PlannedUnit
from storage.writer import CacheWriter, create_cache


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher and student without their weights."""

    directory: Path
    """Of the teacher."""
    teacher: Prompter
    student: Prompter
    teacher_tokens: dict[int, Token]
    student_tokens: dict[int, Token]
    alignment: VocabularyAlignment


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dump that has passed every check which needs no weights."""

    recipe: Recipe
    pair: Pair
    samples: SampleIndex
    """Training then validation."""
    writer: CacheWriter
    planned: int
    """Samples that this job added to the plan."""

    @property
    def pending(self) -> list[PlannedUnit]:
        """Units of this cache that no one has committed."""
        return self.writer.pending()


def load_pair(recipe: Recipe, *, weights: bool = True) -> Pair:
    """Processors, tokenizers and configurations of both models, and the alignment of their vocabularies.

    Args:
        weights: the teacher's weights must be there too.

    Raises:
        FirstSightError: a model that is not there, vocabularies that do not fit, a top_k that is too large.
    """
    directory = resolve_directory(recipe, recipe.teacher, weights=weights)
    student_directory = resolve_directory(recipe, recipe.student, weights=False)
    options: dict[str, Any] = {"max_length": recipe.data.max_length, "system_prompt": recipe.data.system_prompt}
    teacher = Prompter(load_processor(directory, recipe.teacher), **options)
    student = Prompter(load_processor(student_directory, recipe.student), **options)
    teacher_tokens, student_tokens = token_table(teacher.tokenizer), token_table(student.tokenizer)
    alignment = align_vocabularies(
        teacher_tokens,
        student_tokens,
        teacher_rows=head_rows(load_config(directory, recipe.teacher)),
        student_rows=head_rows(load_config(student_directory, recipe.student)),
    )
    if recipe.cache.top_k > alignment.shared.sum():
        raise DataError(
            f"cache.top_k: {recipe.cache.top_k} is more than the {alignment.shared.sum()} tokens that teacher and student "
            "share; lower it"
        )
    return Pair(
        directory=directory,
        teacher=teacher,
        student=student,
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens,
        alignment=alignment,
    )


def index_samples(recipe: Recipe, student: Prompter, *, progress: bool = True) -> SampleIndex:
    """All samples of the recipe by key, with their answer positions.

    Raises:
        DataError: a row that cannot be used, or one without an answer where the recipe does not let the teacher answer.
    """
    files = [recipe.file("train"), recipe.file("validation")]
    for path in files:
        check_files(path, recipe.data_root)

    def positions(sample: Sample) -> int:
        if sample.answer is not None:
            return len(student.answer_ids(sample.answer))
        if not recipe.cache.generate_missing:
            raise DataError(
                f"{sample.place}: sample {sample.id!r} has no answer; add an assistant message, or let the teacher answer: "
                "cache.generate_missing: true"
            )
        return recipe.cache.generate_max_tokens

    with tqdm(desc="reading samples", unit="sample", disable=not progress, leave=False) as bar:
        return SampleIndex.build(files, recipe.data_root, positions, progress=bar.update)


def prepare(recipe: Recipe, *, progress: bool = True) -> Job:
    """Check data, models and cache, and plan what is missing.

    Raises:
        FirstSightError: bad data, models that are not there, vocabularies that do not fit.
        CacheError: the cache was made with another spec (with the differences).
    """
    pair = load_pair(recipe)
    samples = index_samples(recipe, pair.student, progress=progress)
    spec = cache_spec(
        recipe, teacher_directory=pair.directory, teacher=pair.teacher, student=pair.student, alignment=pair.alignment
    )
    if recipe.cache.generate_missing:
        spec["generation"] = {
            "max_tokens": recipe.cache.generate_max_tokens,
            "temperature": recipe.cache.generate_temperature,
            "seed": recipe.cache.generate_seed,
        }
    writer = create_cache(recipe.cache_location, spec)
    planned = writer.plan(samples.planned(), unit_positions=recipe.cache.unit_positions)
    return Job(recipe=recipe, pair=pair, samples=samples, writer=writer, planned=planned)
