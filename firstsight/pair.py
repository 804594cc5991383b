"""Teacher and student without their weights: processors, tokenizers, and which of their tokens and positions correspond.

pair = load_pair(recipe)
rows = pair.answer_rows(teacher_ids, student_ids)     # the teacher's position for each of the student's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstsight.errors import DataError
from firstsight.models import head_rows, load_config, load_processor, resolve_directory
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.vocabulary import Token, VocabularyAlignment, align_answer, align_vocabularies, token_table

# P answer positions of the student, P_t of the teacher


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

    def answer_rows(self, teacher_ids: NDArray[np.int64], student_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The teacher's answer position that gives soft targets to each of the student's; -1: none does.

        Args:
            teacher_ids: [P_t], the answer in the teacher's tokens, end of turn included.
            student_ids: [P], the same in the student's.

        Returns:
            int64 [P].

        Raises:
            AlignmentError: the two sequences spell different text.
        """
        mapped = self.alignment.student_of_teacher[teacher_ids]
        if len(mapped) == len(student_ids) and (mapped == student_ids).all():
            rows = np.arange(len(student_ids))
        else:
            rows = align_answer(teacher_ids.tolist(), student_ids.tolist(), self.teacher_tokens, self.student_tokens)
        return np.where(self.alignment.shared[student_ids], rows, -1)


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
