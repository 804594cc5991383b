"""Answers of a teacher in a student's tokens, with the teacher's tokenizer and with what a cache stores of it."""

import numpy as np
import pytest

from firstsight.answer_alignment import AnswerAlignment, TeacherTokens
from firstsight.models.loading import head_rows, load_config
from firstsight.pair import load_prompter
from firstsight.recipe import DataSection, TeacherSection


@pytest.fixture(scope="module")
def prompter(models):
    return load_prompter(models / "teacher", TeacherSection(), DataSection())


def test_what_a_cache_stores_reads_the_answers_as_the_tokenizer_does(models, prompter):
    rows = head_rows(load_config(models / "teacher", TeacherSection()))
    own = TeacherTokens.of_prompter(prompter, rows)
    spec = {"head": {"rows": rows}, "teacher": own.identity()}
    stored = TeacherTokens.of_cache(spec, own.stored())
    assert stored == own
    for text in ("red lamp", "a", "two  cups near the door"):
        ids = prompter.answer_ids(text)
        assert stored.ended(ids)
        assert stored.text(ids) == prompter.answer_text(ids[: -len(prompter.end_of_turn_ids)]) == text
        assert stored.text(ids[:1]) == prompter.answer_text(ids[:1])
        assert not stored.ended(ids[:1])
    answers = AnswerAlignment(stored, prompter, student_rows=rows)
    ids = np.array(prompter.answer_ids("red lamp"))
    assert answers.student_ids(ids).tolist() == ids.tolist()
    assert answers.rows(ids, ids).tolist() == list(range(len(ids)))


def test_a_prefix_is_not_part_of_the_text():
    tokens = TeacherTokens(
        table={0: (b" a", False), 1: (b"b", False), 2: (b"<end>", True), 3: (b" ", False)},
        rows=4,
        end_of_turn=(2,),
        prefix=" ",
    )
    assert [tokens.text(ids) for ids in ([0, 1, 2], [0, 1], [1, 2], [3, 0, 2], [2], [])] == [
        "ab",
        "ab",
        "b",
        " a",
        "",
        "",
    ]
    assert [tokens.ended(ids) for ids in ([0, 2], [0], [])] == [True, False, False]
