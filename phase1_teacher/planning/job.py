"""What a dump needs before the teacher's weights are loaded: data, tokenizers, alignment, the planned cache.

job = prepare_dump(recipe)     # everything that can be refused is refused here
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from firstsight.data.samples import Sample, check_files
from firstsight.errors import AlignmentError, DataError, ModelError
from firstsight.families.parts import head_shape
from firstsight.identity import cache_spec, exact_spec
from firstsight.models.loading import load_config
from firstsight.pair import Pair, load_pair, load_teacher_pair
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase1_teacher.planning.sample_index import SampleIndex
from storage.plan import PlannedUnit
from storage.writer import CacheWriter, create_cache


@dataclass(frozen=True, kw_only=True)
class DumpJob:
    """A dump that has passed every check which needs no weights."""

    recipe: Recipe
    pair: Pair
    """Where targets are exact, the student is the teacher itself."""
    student: Pair | None
    """Teacher and student, where the report says what a top_k cache costs the student's gradient."""
    samples: SampleIndex
    """Training then validation."""
    writer: CacheWriter
    planned: int
    """Samples that this job added to the plan."""

    @property
    def pending(self) -> list[PlannedUnit]:
        """Units of this cache that no one has committed."""
        return self.writer.pending()


def dump_pair(recipe: Recipe, *, weights: bool = True) -> Pair:
    """The models of a dump, without their weights: those of exact targets know no student.

    Args:
        recipe: of the dump.
        weights: the teacher's weights must be there too.
    """
    load = load_teacher_pair if recipe.cache.targets == "exact" else load_pair
    return load(recipe, weights=weights)


def _measured_pair(recipe: Recipe, pair: Pair) -> Pair:
    """Teacher and student; ModelError for a student that is not there, which exact targets do without."""
    if recipe.cache.targets == "top_k":
        return pair
    try:
        return load_pair(recipe)
    except (ModelError, AlignmentError) as error:
        raise ModelError(
            f"{error}; exact targets need no student: --student none leaves it out of the report on a dump"
        ) from None


def dump_spec(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """The spec of the cache, but for generated answers."""
    if recipe.cache.targets == "exact":
        return exact_spec(
            recipe,
            teacher_directory=pair.directory,
            teacher=pair.teacher,
            tokens=pair.answers.teacher,
            head=head_shape(load_config(pair.directory, recipe.teacher)),
        )
    return cache_spec(
        recipe, teacher_directory=pair.directory, teacher=pair.teacher, student=pair.student, alignment=pair.alignment
    )


def index_samples(recipe: Recipe, pair: Pair, *, total: int, progress: bool = True) -> SampleIndex:
    """All samples of the recipe by key, with their answer positions.

    Args:
        recipe: its data checked by `samples.check_files`.
        pair: counts the positions; both models must take the samples' lengths.
        total: rows.
        progress: show a bar.

    Raises:
        DataError: a row without an answer where the recipe does not let the teacher answer; a sample that teacher or
            student cannot take (`Pair.check`), unless the recipe skips it.
    """

    def positions(sample: Sample) -> int:
        if recipe.cache.on_error == "stop":
            pair.check(sample, generated=recipe.cache.generate_max_tokens)
        return answer_positions(recipe, pair.student, sample)

    with tqdm(total=total, desc="reading samples", unit=" sample", disable=not progress, leave=False) as bar:
        return SampleIndex.build(recipe.sources(), positions, progress=bar.update)


def answer_positions(recipe: Recipe, student: Prompter, sample: Sample) -> int:
    """Tokens of a sample's answer; where the teacher answers, the most that it may generate.

    Raises:
        DataError: no answer, and the recipe does not let the teacher answer.
    """
    if sample.answer is not None:
        return len(student.answer_ids(sample.answer))
    if not recipe.cache.generate_missing:
        raise DataError(
            f"{sample.place}: sample {sample.id!r} has no answer; add an assistant message, or let the teacher answer: "
            "cache.generate_missing: true"
        )
    return recipe.cache.generate_max_tokens


def prepare_dump(
    recipe: Recipe, *, rows: int | None = None, measure_student: bool = False, progress: bool = True
) -> DumpJob:
    """Check data, models and cache, and plan what is missing.

    Args:
        recipe: of the dump.
        rows: of its data, if `samples.check_files` has been through them; None: it goes through them now.
        measure_student: say what a top_k cache costs the gradient of the recipe's student, whose base is loaded after the dump.
        progress: show bars.

    Raises:
        FirstSightError: bad data, models that are not found, vocabularies that do not fit.
        CacheError: the cache was made with another spec (with the differences).
    """
    if rows is None:
        rows = check_files(recipe.sources(), progress=progress)
    pair = dump_pair(recipe)
    student = _measured_pair(recipe, pair) if measure_student else None
    samples = index_samples(recipe, pair, total=rows, progress=progress)
    spec = dump_spec(recipe, pair)
    if recipe.cache.generate_missing:
        spec["generation"] = {
            "max_tokens": recipe.cache.generate_max_tokens,
            "temperature": recipe.cache.generate_temperature,
            "seed": recipe.cache.generate_seed,
        }
    writer = create_cache(recipe.cache_location, spec)
    planned = writer.plan(samples.planned(), unit_positions=recipe.cache.unit_positions)
    return DumpJob(recipe=recipe, pair=pair, student=student, samples=samples, writer=writer, planned=planned)
