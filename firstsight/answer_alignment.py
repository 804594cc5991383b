"""A teacher's answers in a student's tokens, from the token tables alone: the teacher is not needed.

teacher = TeacherTokens.of_cache(cache.spec, cache.head().tokens())       # of an exact cache
answers = AnswerAlignment(teacher, student, student_rows=151_936)
student_ids = answers.student_ids(teacher_ids)                            # of an answer that the teacher gave
rows = answers.rows(teacher_ids, student_ids)                             # for each student position, the teacher's
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from firstsight.errors import AlignmentError
from firstsight.prompting import Prompter
from firstsight.vocabulary import (
    Token,
    align_answer,
    align_vocabularies,
    restored_tokens,
    stored_tokens,
    token_table,
)

# P answer positions of the student, P_t of the teacher


@dataclass(frozen=True, kw_only=True)
class TeacherTokens:
    """What is needed to read a teacher's answers."""

    table: dict[int, Token]
    rows: int
    """Rows of the teacher's head, padding included."""
    end_of_turn: tuple[int, ...]
    """Ids that end an answer."""
    prefix: str
    """What the tokens spell before a closing answer: the chat template's prefix, or a tokenizer's own space."""
    earlier_prefix: str = ""
    """The same before an answer that other messages follow."""

    @classmethod
    def of_prompter(cls, prompter: Prompter, rows: int) -> Self:
        """The tokens of a teacher, from its tokenizer."""
        return cls(
            table=token_table(prompter.tokenizer),
            rows=rows,
            end_of_turn=tuple(prompter.end_of_turn_ids),
            prefix=prompter.spelled_prefix(closing=True).decode(),
            earlier_prefix=prompter.spelled_prefix(closing=False).decode(),
        )

    @classmethod
    def of_cache(cls, spec: Mapping[str, Any], stored: Mapping[int, tuple[bytes, int]]) -> Self:
        """The tokens of a teacher, as a cache of exact targets stores them.

        Args:
            spec: of the cache.
            stored: `storage.exact.ExactCache.head().tokens()`.
        """
        teacher = spec["teacher"]
        return cls(
            table=restored_tokens(stored),
            rows=spec["head"]["rows"],
            end_of_turn=tuple(teacher["end_of_turn"]),
            prefix=teacher["answer_prefix"],
            earlier_prefix=teacher.get("earlier_prefix", teacher["answer_prefix"]),
        )

    def identity(self) -> dict[str, Any]:
        """What the specification of an exact cache says about them, besides the digest of the table."""
        earlier = {} if self.earlier_prefix == self.prefix else {"earlier_prefix": self.earlier_prefix}
        return {"end_of_turn": list(self.end_of_turn), "answer_prefix": self.prefix, **earlier}

    def stored(self) -> dict[int, tuple[bytes, int]]:
        """The table as the head of an exact cache stores it."""
        return stored_tokens(self.table)

    def spelled_prefix(self, *, closing: bool) -> bytes:
        """What the tokens of an answer spell before it."""
        return (self.prefix if closing else self.earlier_prefix).encode()

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer ends its turn; one that was cut off does not."""
        return tuple(ids[-len(self.end_of_turn) :]) == self.end_of_turn

    def text(self, ids: Sequence[int], *, closing: bool = True) -> str:
        """The text of an answer, without the end of turn and without the prefix."""
        own = ids[: -len(self.end_of_turn)] if self.ended(ids) else ids
        return _spelled(own, self.table).removeprefix(self.spelled_prefix(closing=closing)).decode("utf-8", "replace")


class AnswerAlignment:
    """The teacher's answer positions for a student's.

    Args:
        teacher: its tokens.
        student: its prompter.
        student_rows: of the student's head, padding included.

    Raises:
        AlignmentError: a tokenizer has ids beyond its head, or the two share no token.
    """

    def __init__(self, teacher: TeacherTokens, student: Prompter, *, student_rows: int) -> None:
        self.teacher = teacher
        self.student = student
        self.student_table = token_table(student.tokenizer)
        self.vocabulary = align_vocabularies(
            teacher.table, self.student_table, teacher_rows=teacher.rows, student_rows=student_rows
        )

    def rows(
        self, teacher_ids: NDArray[np.int64], student_ids: NDArray[np.int64], *, closing: bool = True
    ) -> NDArray[np.int64]:
        """For each answer position of the student, the teacher's that gives it soft targets; -1: none does.

        Args:
            teacher_ids: [P_t], the answer in the teacher's tokens, end of turn included.
            student_ids: [P], the same in the student's.
            closing: no other message follows.

        Returns:
            int64 [P].

        Raises:
            AlignmentError: the two sequences spell different text.
        """
        teacher_ids = self.readable(teacher_ids)
        mapped = self.vocabulary.student_of_teacher[teacher_ids]
        teacher_offset = _offset(teacher_ids, self.teacher.table, self.teacher.spelled_prefix(closing=closing))
        student_offset = _offset(student_ids, self.student_table, self.student.spelled_prefix(closing=closing))
        if teacher_offset == student_offset and len(mapped) == len(student_ids) and (mapped == student_ids).all():
            rows = np.arange(len(student_ids))
        else:
            rows = align_answer(
                teacher_ids.tolist(),
                student_ids.tolist(),
                self.teacher.table,
                self.student_table,
                teacher_offset=teacher_offset,
                student_offset=student_offset,
            )
        return np.where(self.vocabulary.shared[student_ids], rows, -1)

    def readable(self, teacher_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of a teacher's answer that a student can be taught.

        The whole answer if the student has each of its tokens; else the longest beginning that is text: an answer that was cut off
        may end inside a character.
        """
        if (self.vocabulary.student_of_teacher[teacher_ids] >= 0).all():
            return teacher_ids
        ids = teacher_ids.tolist()
        contents = [b"" if control else content for content, control in (self.teacher.table[index] for index in ids)]
        for stop in range(len(ids), 0, -1):
            try:
                b"".join(contents[:stop]).decode()
            except UnicodeDecodeError:
                continue
            return teacher_ids[:stop]
        return teacher_ids[:0]

    def student_ids(
        self, teacher_ids: NDArray[np.int64], *, closing: bool = True, generated: bool = True
    ) -> NDArray[np.int64]:
        """An answer in the student's tokens; its end of turn becomes the student's.

        Where the student lacks one of its tokens, only text is left: see `readable`.

        Args:
            teacher_ids: [P_t]; without an end of turn where it was cut off.
            closing: no other message follows.
            generated: the teacher gave it: its own tokens are kept where the student has them all. Else it is a ground truth, in
                the tokens that the student's tokenizer makes of it, which may join more than the teacher's does.

        Returns:
            int64 [P].

        Raises:
            AlignmentError: nothing is left of it.
        """
        teacher_ids = self.readable(teacher_ids)
        if not len(teacher_ids):
            raise AlignmentError("the answer that the teacher gave begins inside a character: no text is left of it")
        mapped = self.vocabulary.student_of_teacher[teacher_ids]
        same_prefix = self.teacher.spelled_prefix(closing=closing) == self.student.spelled_prefix(closing=closing)
        if generated and same_prefix and (mapped >= 0).all():
            return mapped
        ids = self.student.answer_ids(self.teacher.text(teacher_ids.tolist(), closing=closing), closing=closing)
        if not self.teacher.ended(teacher_ids.tolist()):
            ids = ids[: -len(self.student.end_of_turn_ids)]
        return np.array(ids, dtype=np.int64)


def _spelled(ids: Iterable[int], table: Mapping[int, Token]) -> bytes:
    return b"".join(content for content, control in (table[index] for index in ids) if not control)


def _offset(ids: NDArray[np.int64], table: Mapping[int, Token], prefix: bytes) -> int:
    """Bytes before the answer in the spelling of its tokens: a model that answers may omit the template's prefix."""
    return len(prefix) if prefix and _spelled(ids.tolist(), table).startswith(prefix) else 0
