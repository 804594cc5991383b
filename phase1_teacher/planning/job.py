"""What a dump needs before the teacher's weights are loaded: data, tokenizers, alignment, the planned cache.

job = prepare_dump(recipe)     # everything that can be refused is refused here
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from firstsight.data.samples import Sample, check_files
from firstsight.errors import AlignmentError, DataError, ModelError, RecipeError
from firstsight.families.parts import head_shape
from firstsight.generation import stored_stop_ids
from firstsight.identity import cache_spec, exact_spec, with_turns_of_cache
from firstsight.models.loading import load_config
from firstsight.pair import Pair, load_pair, load_teacher_pair
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase1_teacher.planning.retry import plan_again
from phase1_teacher.planning.sample_index import SampleIndex
from storage.plan import PlannedUnit
from storage.wording import counted
from storage.writer import CacheWriter, create_cache


@dataclass(frozen=True, kw_only=True)
class DumpJob:
    """A dump that has passed every check that needs no weights."""

    recipe: Recipe
    pair: Pair
    """Teacher and student; for exact targets the teacher takes both places."""
    student: Pair | None
    """Teacher and student, if the dump reports how a top_k cache changes the student's gradient; else None."""
    samples: SampleIndex
    """Training samples, then validation samples."""
    writer: CacheWriter
    planned: int
    """Samples that this job added to the plan."""
    again: int
    """How many of them earlier dumps skipped."""

    @property
    def pending(self) -> list[PlannedUnit]:
        """Units of this cache that are not committed."""
        return self.writer.pending()


def check_adopted_turns(sample: Sample, location: str) -> None:
    """Raise DataError for a sample with more answers than the existing cache can hold."""
    if sample.earlier_answers:
        raise DataError(
            f"{sample.place}: sample {sample.id!r} has {counted(len(sample.answers), 'answer')}, and {location} holds only the last of "
            "each row (format version 1, or data.turns: last); set data.turns: last to add to it, or use another cache.path to train on "
            "every answer"
        )


def dump_pair(recipe: Recipe, *, weights: bool = True) -> Pair:
    """The models of a dump, without their weights; a dump of exact targets has no student.

    Args:
        recipe: the dump's recipe.
        weights: the teacher's weights must exist, too.

    Raises:
        RecipeError: a key of generated answers is stated, but not whether there are any.
        ModelError: a model was not found.
    """
    named = recipe.cache.model_fields_set
    for key in ("generate_max_tokens", "generate_temperature", "generate_seed"):
        if key in named and "generate_missing" not in named:
            raise RecipeError(
                f"cache.{key}: has no effect without cache.generate_missing: true; state that key too (false keeps this one for later)"
            )
    load = load_teacher_pair if recipe.cache.targets == "exact" else load_pair
    return load(recipe, weights=weights)


def _measured_pair(recipe: Recipe, pair: Pair) -> Pair:
    """Teacher and student, for the report of an exact dump. Raises ModelError if the student was not found."""
    if recipe.cache.targets == "top_k":
        return pair
    try:
        return load_pair(recipe)
    except (ModelError, AlignmentError) as error:
        raise ModelError(
            f"{error}; exact targets need no student: --student none leaves it out of the report on a dump"
        ) from None


def dump_spec(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """The spec of the cache, without what concerns generated answers."""
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


def _generation(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """What the teacher's own answers depend on, besides the teacher."""
    _, *others = stored_stop_ids(pair.directory, load_config(pair.directory, recipe.teacher), pair.teacher)
    return {
        "max_tokens": recipe.cache.generate_max_tokens,
        "temperature": recipe.cache.generate_temperature,
        "seed": recipe.cache.generate_seed,
        **({"stops": sorted(others)} if others else {}),
    }


def index_samples(
    recipe: Recipe, pair: Pair, *, total: int, adopted: bool = False, progress: bool = True
) -> SampleIndex:
    """All samples of the recipe by key, with their answer positions.

    Args:
        recipe: a recipe with data that passed `samples.check_files`.
        pair: counts the positions; each sample must fit into both models.
        total: number of rows.
        adopted: `data.turns` comes from the cache, not from the recipe.
        progress: show a bar.

    Raises:
        DataError: a row has no answer and the recipe does not let the teacher answer, or teacher or student cannot take a
            sample (`Pair.check`) and the recipe does not skip it.
    """

    def positions(sample: Sample) -> int:
        if adopted:
            check_adopted_turns(sample, recipe.cache_location)
        check_answered(recipe, sample)
        try:
            if recipe.cache.on_error == "stop":
                check_sample(recipe, pair, sample)
            return answer_positions(recipe, pair.student, sample)
        except DataError:
            if recipe.cache.on_error == "stop":
                raise
            return 1  # skipped and named when its turn comes

    with tqdm(total=total, desc="reading samples", unit=" sample", disable=not progress, leave=False) as bar:
        return SampleIndex.build(recipe.sources(), positions, progress=bar.update)


def answer_positions(recipe: Recipe, student: Prompter, sample: Sample) -> int:
    """Tokens of a sample's answers; for an answer that the teacher is to give, the most that it may generate.

    Raises:
        DataError: the sample has no answer, and the recipe does not let the teacher answer.
    """
    check_answered(recipe, sample)
    own = sum(map(len, student.turn_ids(sample)))
    return own if sample.answer is not None else own + recipe.cache.generate_max_tokens


def check_answered(recipe: Recipe, sample: Sample) -> None:
    """Raise DataError if a sample ends without an answer and the recipe does not let the teacher answer."""
    if sample.answer is None and not recipe.cache.generate_missing:
        raise DataError(
            f"{sample.place}: sample {sample.id!r} has no answer{' to its last question' if sample.answers else ''}; add an assistant "
            "message, or let the teacher answer: "
            "cache.generate_missing: true"
        )


def check_sample(recipe: Recipe, pair: Pair, sample: Sample, *, images: bool = False) -> None:
    """Raise DataError for a sample that cannot be dumped, as far as this can be known without weights.

    Args:
        recipe: the dump's recipe.
        pair: both models.
        sample: a sample of the data.
        images: also decode its images.
    """
    pair.check(sample, generated=recipe.cache.generate_max_tokens)
    if images:
        pair.teacher.encode(sample, [])


def prepare_dump(
    recipe: Recipe,
    *,
    rows: int | None = None,
    retry_skipped: bool = False,
    measure_student: bool = False,
    progress: bool = True,
) -> DumpJob:
    """Check data, models and cache, and plan what is missing.

    Samples that earlier dumps skipped are planned again if they can be dumped now, as far as this can be known without weights.

    Args:
        recipe: the dump's recipe.
        rows: number of rows in its data, if `samples.check_files` has checked them already; None: check them now.
        retry_skipped: also plan samples again that were skipped because of what the teacher computed.
        measure_student: report how a top_k cache changes the gradient of the recipe's student, which is loaded after the dump.
        progress: show bars.

    Raises:
        FirstSightError: bad data, models that are not found, vocabularies that do not fit.
        CacheError: the cache was made with another spec; lists the differences.
    """
    if rows is None:
        rows = check_files(recipe.sources(), progress=progress)
    stated, recipe = recipe, with_turns_of_cache(recipe)
    pair = dump_pair(recipe)
    student = _measured_pair(recipe, pair) if measure_student else None
    samples = index_samples(recipe, pair, total=rows, adopted=recipe is not stated, progress=progress)
    spec = dump_spec(recipe, pair)
    if recipe.cache.generate_missing:
        spec["generation"] = _generation(recipe, pair)
    writer = create_cache(recipe.cache_location, spec)
    planned = writer.plan(samples.planned(), unit_positions=recipe.cache.unit_positions)
    again = plan_again(
        writer,
        samples,
        lambda sample: check_sample(recipe, pair, sample, images=True),
        unit_positions=recipe.cache.unit_positions,
        all_skipped=retry_skipped,
        stop=recipe.cache.on_error == "stop",
    )
    return DumpJob(
        recipe=recipe,
        pair=pair,
        student=student,
        samples=samples,
        writer=writer,
        planned=planned + again,
        again=again,
    )
