"""A top_k cache for any student from an exact one: the teacher's states and head are stored, the teacher itself is not needed.

job = prepare_derivation("exact.zarr", recipe)     # student's tokenizer, spec, plan
summary = derive(job)                              # what a dump for this student would have written
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from firstsight.answer_alignment import AnswerAlignment, TeacherTokens
from firstsight.errors import AlignmentError, ModelError, RecipeError, TargetError
from firstsight.identity import cached_turns, teacher_of_exact, top_k_spec
from firstsight.models.loading import default_device, head_rows, load_config, resolve_directory
from firstsight.models.teacher_head import floats
from firstsight.pair import check_top_k, load_prompter
from firstsight.recipe import Recipe
from firstsight.stated import stated
from phase1_teacher.dump import DumpSummary
from phase1_teacher.forward.device_clock import DeviceClock
from phase1_teacher.forward.fidelity import Comparison, comparison
from phase1_teacher.forward.soft_targets import TopKHead
from phase1_teacher.forward.tail_basis import NO_STATES, agreed_basis
from phase1_teacher.forward.teacher import AnsweredSample, ForwardResult, measured_rows
from phase1_teacher.workers import Shard, work_order
from phase1_teacher.writing.unit_results import TopKResults
from storage.errors import SpecMismatch
from storage.exact import ExactCache, ExactRows, open_any_cache, open_exact_cache
from storage.maintenance.status import cache_status
from storage.plan import PlannedSample, PlannedUnit
from storage.targets import Turn
from storage.writer import CacheWriter, create_cache

_OF_EXACT = frozenset({"format_version", "targets", "hidden_size", "state_dtype", "head", "teacher"})
"""Fields of an exact cache's spec that are not those of a top_k cache, or not the same."""


@dataclass(frozen=True, kw_only=True)
class DerivedAnswer:
    """An answer of an exact cache in the student's tokens."""

    student_ids: NDArray[np.int64]
    """[P]"""
    rows: NDArray[np.int64]
    """[P] the stored position for each of them; -1: none, only the hard label."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A derivation that has passed every check which needs neither states nor head."""

    recipe: Recipe
    exact: ExactCache
    answers: AnswerAlignment
    writer: CacheWriter
    planned: int
    """Samples that this job added to the plan."""
    open_units: int
    """Planned units of the exact cache that nobody has committed yet."""
    skipped: dict[str, str]
    """Samples that the exact cache has skipped, and why: the recipe's cache skips them as well."""

    @property
    def compared(self) -> Comparison:
        """What the fidelity report measures."""
        return comparison(self.writer.version, self.answers.vocabulary, self.recipe.loss.temperature)

    def units(self) -> tuple[list[PlannedUnit], list[PlannedUnit]]:
        """Units of the recipe's cache that nobody has committed: those of samples of the exact cache, and those that have others."""
        own, foreign = list[PlannedUnit](), list[PlannedUnit]()
        for unit in self.writer.pending():
            (own if all(map(self.knows, unit.keys)) else foreign).append(unit)
        return own, foreign

    def knows(self, key: str) -> bool:
        """Whether the exact cache holds a sample, or has skipped it."""
        return key in self.exact or key in self.skipped

    def answer(self, key: str) -> DerivedAnswer:
        """A sample's answer in the student's tokens; AlignmentError naming the sample."""
        return _derived(self.answers, key, self.exact.rows(key))


def prepare_derivation(location: str, recipe: Recipe) -> Derivation:
    """Open an exact cache, compare it with the recipe, and plan what the recipe's cache lacks of it.

    Args:
        location: of the exact cache.
        recipe: its student and its cache; its teacher and its data need not be there.

    Raises:
        RecipeError: a recipe whose own cache is of exact targets.
        FirstSightError: a student that is not there, or whose vocabulary does not fit.
        CacheError: no exact cache, one of another teacher than the recipe states, or the recipe's cache has another spec.
    """
    if recipe.cache.targets == "exact":
        raise RecipeError(
            "cache.targets: exact: derive writes a top_k cache; set cache.targets: top_k and another cache.path"
        )
    exact = open_exact_cache(location, memory_budget=recipe.cache.memory, scratch=recipe.cache_scratch)
    _check_stated(recipe, exact)
    directory = resolve_directory(recipe, recipe.student, weights=False)
    student = load_prompter(directory, recipe.student, recipe.data, turns=cached_turns(exact.spec))
    answers = AnswerAlignment(
        TeacherTokens.of_cache(exact.spec, exact.head().tokens()),
        student,
        student_rows=head_rows(load_config(directory, recipe.student)),
    )
    check_top_k(recipe, answers.vocabulary)
    spec = top_k_spec(
        recipe,
        teacher=teacher_of_exact(exact.spec),
        student=student,
        alignment=answers.vocabulary,
        hidden_size=exact.hidden_size,
    ) | {name: value for name, value in exact.spec.items() if name not in _OF_EXACT}
    writer = create_cache(recipe.cache_location, spec)
    skipped = exact.skipped()
    planned = writer.plan(_planned(exact, skipped), unit_positions=recipe.cache.unit_positions)
    # what was skipped before, and the exact cache has now in tokens that the student's spell
    lacking = [key for key in open_any_cache(writer.store).skipped() if key in exact and _spelled(answers, exact, key)]
    if lacking:
        again = (PlannedSample(key=key, positions=len(exact.rows(key).target_ids)) for key in lacking)
        planned += writer.plan(again, unit_positions=recipe.cache.unit_positions, retry_skipped=True)
    return Derivation(
        recipe=recipe,
        exact=exact,
        answers=answers,
        writer=writer,
        planned=planned,
        open_units=len(cache_status(location).pending),
        skipped=skipped,
    )


def derive(job: Derivation, *, shard: Shard | None = None, progress: bool = True) -> DumpSummary:
    """Compute and commit every unit that is not committed, but for those of other samples than the exact cache's.

    Args:
        job: from `prepare_derivation`.
        shard: where this worker begins; it continues with every other unit that is not committed.
        progress: show a bar.

    Raises:
        AlignmentError: an answer that the student's tokens do not spell, unless the recipe skips it.
        CacheError: states or head are damaged, or the store refused a write.
    """
    pending = work_order(job.units()[0], shard or Shard())
    if not pending:
        return DumpSummary()
    head = stored_head(job)
    if job.writer.layout.tail_rank:
        head.tail = agreed_basis(job.writer, lambda: _first_states(job), head)
    begin = time.perf_counter()
    units = samples = positions = 0
    with tqdm(total=sum(map(len, pending)), desc="derive", unit=" sample", disable=not progress) as bar:
        for unit in pending:
            if not job.writer.is_committed(unit.name):
                results = _results(job, unit, head)
                with job.writer.unit(unit) as out:
                    results.fill(out)
                if out.won:
                    units += 1
                    samples += len(unit) - len(results.skipped)
                    positions += int(results.sums.get("positions", 0))
            bar.update(len(unit))
    return DumpSummary(samples=samples, positions=positions, units=units, seconds=time.perf_counter() - begin)


def _first_states(job: Derivation) -> torch.Tensor:
    """[N, D] the states that a dump of this plan makes its basis of; TargetError where there are none."""
    for unit in job.writer.units():
        states = []
        for key in unit.keys:
            if key not in job.exact:  # skipped
                continue
            try:
                rows = job.answer(key).rows
            except AlignmentError:  # the unit itself refuses or skips it
                continue
            states.append(job.exact[key].targets.states[rows[rows >= 0]])
        if sum(map(len, states)):
            return torch.from_numpy(np.concatenate(states)).view(getattr(torch, job.exact.state_dtype))
    raise TargetError(NO_STATES)


def stored_head(job: Derivation) -> TopKHead:
    """The head of the exact cache, as a dump uses the teacher's own.

    Raises:
        CorruptObject, ObjectMissing: of the head.
        ModelError: it does more than we know of.
    """
    head = job.exact.head()
    if head.scale != 1 or head.softcap is not None:
        raise ModelError(
            f"{job.exact.location}: its head scales (by {head.scale:g}) or soft-caps (at {head.softcap}) the logits, which is not "
            "supported"
        )
    device = default_device()
    dtype = getattr(torch, job.exact.head_dtype)
    weight_VD = torch.empty(head.shape("weight"), device=device)
    for start, rows in head.chunks("weight"):
        weight_VD[start : start + len(rows)] = floats(rows.copy(), dtype).to(device)
    bias_V = floats(head.array("bias"), dtype).to(device) if job.exact.spec["head"]["bias"] else None
    layout = job.compared.layout
    return TopKHead(
        weight_VD,
        bias_V,
        job.answers.vocabulary,
        top_k=layout.top_k,
        temperatures=layout.temperatures,
        reported=job.compared.temperatures,
    )


def _results(job: Derivation, unit: PlannedUnit, head: TopKHead) -> TopKResults:
    """The targets of a unit."""
    skip = job.recipe.cache.on_error == "skip"
    results = TopKResults(unit, job.compared, skip=skip)
    answered: list[AnsweredSample] = []
    states: list[NDArray[Any]] = []
    for key in unit.keys:
        if key in job.skipped:
            results.skipped[key] = job.skipped[key]
            continue
        try:
            answer = job.answer(key)
        except AlignmentError as error:
            if not skip:
                raise
            results.skipped[key] = str(error)
            continue
        soft = answer.rows >= 0
        answered.append(
            AnsweredSample(
                key=key,
                name=f"sample {key}",
                turns=answer.turns,
                student_ids=answer.student_ids,
                soft=soft,
            )
        )
        states.append(job.exact[key].targets.states[answer.rows[soft]])
    if answered:
        results.add(_result(job, answered, np.concatenate(states), head))
    return results


def _result(job: Derivation, answered: list[AnsweredSample], states: NDArray[Any], head: TopKHead) -> ForwardResult:
    states_ND = floats(states, getattr(torch, job.exact.state_dtype))
    target_ids = torch.from_numpy(np.concatenate([each.student_ids[each.soft] for each in answered]))
    measured = measured_rows(0, len(states), job.recipe.cache.unit_positions)
    return ForwardResult(
        samples=answered,
        block=head(states_ND, target_ids, measured).to_host(),
        measured_m=measured,
        ready=DeviceClock(head.device).event(),
    )


def _derived(answers: AnswerAlignment, key: str, stored: ExactRows) -> DerivedAnswer:
    ids, rows, turns = [], [], []
    start = 0
    teacher_ids = stored.target_ids.astype(np.int64)
    stored_turns = stored.turns or (Turn(len(teacher_ids), stored.hard),)
    for number, turn in enumerate(stored_turns, start=1):
        own, closing = teacher_ids[start : start + turn.positions], number == len(stored_turns)
        try:
            student_ids = answers.student_ids(own, closing=closing, generated=not turn.hard)
            places = answers.rows(own, student_ids, closing=closing)
        except AlignmentError as error:
            raise AlignmentError(f"sample {key}: {error}") from None
        ids.append(student_ids)
        rows.append(np.where(places >= 0, places + start, -1))
        turns.append(Turn(len(student_ids), turn.hard))
        start += turn.positions
    return DerivedAnswer(student_ids=np.concatenate(ids), rows=np.concatenate(rows), turns=tuple(turns))


def _planned(exact: ExactCache, skipped: Iterable[str]) -> Iterator[PlannedSample]:
    """Every sample of an exact cache in the order of its units, with the positions that it has for the teacher; then the skipped."""
    for name in exact.units():
        for key in exact.unit_keys(name):
            yield PlannedSample(key=key, positions=len(exact.rows(key).target_ids))
    for key in skipped:
        yield PlannedSample(key=key, positions=0)


def _spelled(answers: AnswerAlignment, exact: ExactCache, key: str) -> bool:
    """Whether the student's tokens spell an answer."""
    try:
        _derived(answers, key, exact.rows(key))
    except AlignmentError:
        return False
    return True


def _check_stated(recipe: Recipe, exact: ExactCache) -> None:
    """Raise SpecMismatch where an exact cache is of another teacher than the recipe states, as a training does."""
    differences = [(name, cached, wanted) for name, cached, wanted in stated(recipe, exact.spec) if cached != wanted]
    if differences:
        raise SpecMismatch(exact.location, differences)
