"""Teacher and student without their weights: processors, tokenizers, and which of their tokens and positions correspond.

pair = load_pair(recipe)
rows = pair.answer_rows(sample, teacher_ids, student_ids)     # for each student position, the teacher's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstsight.answer_alignment import AnswerAlignment, TeacherTokens
from firstsight.data.samples import Sample
from firstsight.data.source import Turns
from firstsight.errors import AlignmentError, DataError
from firstsight.families import family_of
from firstsight.families.clock import PROMPT_DATE, template_of_one_day
from firstsight.identity import image_settings
from firstsight.models.loading import head_rows, load_config, load_processor, max_positions, resolve_directory
from firstsight.prompting import Prompter
from firstsight.recipe import DataSection, Recipe, StudentSection, TeacherSection
from firstsight.vocabulary import VocabularyAlignment

# P answer positions of the student, P_t of the teacher


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher and student without their weights."""

    directory: Path
    """Directory of the teacher."""
    teacher: Prompter
    student: Prompter
    answers: AnswerAlignment

    @property
    def alignment(self) -> VocabularyAlignment:
        """The teacher's ids and the student's."""
        return self.answers.vocabulary

    def answer_rows(
        self, sample: Sample, teacher: Sequence[Sequence[int]], student: Sequence[Sequence[int]]
    ) -> NDArray[np.int64]:
        """For each answer position of the student, the teacher's that gives it soft targets; -1: none does.

        Args:
            sample: the answers are its own, all or the first of them.
            teacher: each answer in the teacher's tokens, end of turn included; P_t in all.
            student: the same in the student's; P in all.

        Returns:
            int64 [P].

        Raises:
            AlignmentError: the two sequences of an answer spell different text.
        """
        rows = []
        start = 0
        for number, (theirs, ours) in enumerate(zip(teacher, student, strict=True), start=1):
            closing = number == self.student.turn_count(sample)
            found = self.answers.rows(np.array(theirs), np.array(ours), closing=closing)
            rows.append(np.where(found >= 0, found + start, -1))
            start += len(theirs)
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)

    def student_turns(self, sample: Sample, teacher: Sequence[Sequence[int]]) -> list[list[int]]:
        """Each answer in the student's tokens: the sample's own, then the teacher's.

        Args:
            sample: the answers are its own, and the one that the teacher gave.
            teacher: each answer in the teacher's tokens.

        Raises:
            AlignmentError: nothing is left of what the teacher gave.
        """
        own = self.student.turn_ids(sample)
        return own + [self.answers.student_ids(np.array(ids)).tolist() for ids in teacher[len(own) :]]

    @cached_property
    def same_inputs(self) -> bool:
        """Whether both models get the same ids and pixels for a sample, so that it can be encoded once."""
        teacher, student = self.teacher, self.student
        backends: list[Any] = [getattr(each.tokenizer, "backend_tokenizer", None) for each in (teacher, student)]
        return (
            all(backend is not None for backend in backends)
            and backends[0].to_str() == backends[1].to_str()
            and teacher.processor.chat_template == student.processor.chat_template
            and teacher.family.token_types == student.family.token_types
            and image_settings(teacher.processor, teacher.family) == image_settings(student.processor, student.family)
        )

    def check(self, sample: Sample, *, generated: int = 0) -> int:
        """Tokens of a sample, for the model that needs more; no image is decoded.

        Args:
            sample: of the data.
            generated: tokens of the longest answer that the teacher may give if there is none.

        Raises:
            DataError: it is too long for one of them, or has an answer that their templates spell differently.
        """
        longest = 0
        for prompter in (self.teacher, self.student):
            if prompter is self.teacher or not self.same_inputs or prompter.longest != self.teacher.longest:
                extra = generated if sample.answer is None else 0
                length = prompter.sample_tokens(sample) + extra
                prompter.check_length(sample, length)
                longest = max(longest, length)
        self.check_spelling(sample)
        return longest

    def check_spelling(self, sample: Sample) -> None:
        """Raise DataError for a sample with an answer that the two models' templates spell differently."""
        if self.same_inputs:
            return
        try:
            self.answer_rows(sample, self.teacher.turn_ids(sample), self.student.turn_ids(sample))
        except AlignmentError as error:
            raise DataError(
                f"{sample.place}: sample {sample.id!r}: {error}; where one chat template removes spaces at the ends of an "
                "answer and the other does not, remove them in the data"
            ) from None


def load_pair(recipe: Recipe, *, weights: bool = True) -> Pair:
    """Processors, tokenizers and configurations of both models, and the alignment of their vocabularies.

    Args:
        weights: require the teacher's weights too.

    Raises:
        FirstSightError: a model that was not found, vocabularies that do not fit, a top_k that is too large.
    """
    directory = resolve_directory(recipe, recipe.teacher, weights=weights)
    student_directory = resolve_directory(recipe, recipe.student, weights=False)
    teacher = load_prompter(directory, recipe.teacher, recipe.data)
    student = load_prompter(student_directory, recipe.student, recipe.data)
    answers = AnswerAlignment(
        TeacherTokens.of_prompter(teacher, head_rows(load_config(directory, recipe.teacher))),
        student,
        student_rows=head_rows(load_config(student_directory, recipe.student)),
    )
    check_top_k(recipe, answers.vocabulary)
    return Pair(directory=directory, teacher=teacher, student=student, answers=answers)


def load_teacher_pair(recipe: Recipe, *, weights: bool = True) -> Pair:
    """The teacher as its own student: what exact targets are dumped for.

    Args:
        recipe: its student is not needed.
        weights: require the teacher's weights too.

    Raises:
        FirstSightError: the teacher was not found.
    """
    directory = resolve_directory(recipe, recipe.teacher, weights=weights)
    teacher = load_prompter(directory, recipe.teacher, recipe.data)
    rows = head_rows(load_config(directory, recipe.teacher))
    answers = AnswerAlignment(TeacherTokens.of_prompter(teacher, rows), teacher, student_rows=rows)
    return Pair(directory=directory, teacher=teacher, student=teacher, answers=answers)


def check_top_k(recipe: Recipe, alignment: VocabularyAlignment) -> None:
    """Raise DataError if a recipe stores more entries than the two vocabularies share."""
    shared = int(alignment.shared.sum())
    if recipe.cache.targets == "top_k" and recipe.cache.top_k > shared:
        raise DataError(
            f"cache.top_k: expected at most {shared:,}, the tokens that teacher and student share, got {recipe.cache.top_k:,}; lower it"
        )


def load_prompter(
    directory: Path,
    section: TeacherSection | StudentSection,
    data: DataSection | None = None,
    *,
    max_length: int | None = None,
    system_prompt: str | None = None,
    turns: Turns | None = None,
) -> Prompter:
    """What turns samples into inputs of one model.

    Args:
        directory: of the model.
        section: of the recipe.
        data: gives the longest sequence, the system prompt and which assistant messages are answers.
        max_length: overrides `data`; None and no data: only the model's own limit.
        system_prompt: overrides `data`.
        turns: overrides `data`; None and no data: last.
    """
    config = load_config(directory, section)
    positions = max_positions(config)
    if data is not None:
        max_length, system_prompt = data.max_length, data.system_prompt
        turns = turns or data.turns
    return Prompter(
        load_processor(directory, section),
        family_of(config),
        max_length=positions or 2**31 if max_length is None else max_length,
        system_prompt=system_prompt,
        max_positions=positions,
        turns=turns or "last",
    )


def clock_note(*prompters: Prompter) -> str | None:
    """A line that says which day it is in the prompts; None if no chat template asks."""
    names = dict.fromkeys(each.family.name for each in prompters if template_of_one_day(each.processor))
    if not names:
        return None
    day = f"{PROMPT_DATE.day} {PROMPT_DATE:%B %Y}"
    return f"the chat template of {' and of '.join(names)} reads the clock; it is {day} in every prompt, so that all have one date"
