"""Alignment by token bytes: padded heads, other ids, other tokens, other segmentation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstsight.errors import AlignmentError
from firstsight.vocabulary import (
    BytePiece,
    align_answer,
    align_vocabularies,
    restored_tokens,
    stored_tokens,
    table_digest,
)
from storage.head.content import pack_tokens, unpack_tokens

WORDS = [b"a", b"b", b"ab", b"c", b" ", b"bc"]


def table(tokens, special=()):
    entries = [(token, False) for token in tokens] + [(token, True) for token in special]
    return dict(enumerate(entries))


def test_same_tokenizer_with_padded_heads():
    tokens = table(WORDS, [b"<end>"])
    alignment = align_vocabularies(tokens, tokens, teacher_rows=16, student_rows=10)
    assert alignment.kind == "identical"
    assert alignment.shared_ranges() == [[0, 7]]
    assert alignment.student_of_teacher.tolist() == [*range(7), *[-1] * 9]
    assert alignment.teacher_of_student.tolist() == [*range(7), *[-1] * 3]
    assert alignment.teacher_tokens.sum() == 7


def test_permuted_ids():
    teacher, student = table(WORDS), table(WORDS[::-1])
    alignment = align_vocabularies(teacher, student, teacher_rows=6, student_rows=6)
    assert alignment.kind == "permuted"
    assert all(student[int(alignment.student_of_teacher[i])] == teacher[i] for i in teacher)


def test_partial_and_special_tokens_do_not_match_text():
    teacher, student = table([b"a", b"<end>", b"x"]), table([b"a", b"y"], [b"<end>"])
    alignment = align_vocabularies(teacher, student, teacher_rows=4, student_rows=4)
    assert alignment.kind == "partial"
    assert alignment.student_of_teacher.tolist() == [0, -1, -1, -1]
    assert alignment.shared.tolist() == [True, False, False, False]


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(1, 12), st.integers(1, 12))
def test_the_map_is_one_to_one(left, right, n, m):
    teacher = {i: (b"t%d" % t, False) for i, t in enumerate(left[:n])}
    student = {i: (b"t%d" % t, False) for i, t in enumerate(right[:m])}
    common = set(left[:n]) & set(right[:m])
    if not common:
        with pytest.raises(AlignmentError, match="share no token"):
            align_vocabularies(teacher, student, teacher_rows=12, student_rows=12)
        return
    alignment = align_vocabularies(teacher, student, teacher_rows=12, student_rows=12)
    assert alignment.shared.sum() == len(common)
    for student_id in np.flatnonzero(alignment.shared):
        teacher_id = alignment.teacher_of_student[student_id]
        assert teacher[teacher_id] == student[student_id]
        assert alignment.student_of_teacher[teacher_id] == student_id


def test_a_tokenizer_larger_than_its_head_is_refused():
    with pytest.raises(AlignmentError, match="the student's tokenizer has id 5, but its head has only 4 rows"):
        align_vocabularies(table(WORDS), table(WORDS), teacher_rows=8, student_rows=4)


def test_answer_of_other_segmentation():
    #          0     1     2      3     4      5
    teacher = table([b"a", b"b", b"ab", b"c", b"abc"], [b"<end>"])
    student = table([b"a", b"bc", b"ab", b"c"], [b"<eot>"])
    # teacher: ab | c | <end>      student: a | bc | <eot>
    rows = align_answer([2, 3, 5], [0, 1, 4], teacher, student)
    assert rows.tolist() == [0, -1, 2]
    same = align_answer([2, 3, 5], [2, 3, 4], teacher, student)
    assert same.tolist() == [0, 1, 2]
    with pytest.raises(AlignmentError, match="spell an answer differently"):
        align_answer([2, 5], [0, 4], teacher, student)


def test_digest_sees_ids_bytes_and_kinds():
    digests = {table_digest(t) for t in (table(WORDS), table(WORDS[::-1]), table(WORDS[:-1], WORDS[-1:]))}
    assert len(digests) == 3


def test_a_byte_fallback_piece_never_stands_for_the_piece_that_the_encoder_takes():
    fallback = {0: (BytePiece(b"A"), False), 1: (BytePiece(b"\xf0"), False)}
    pieces = fallback | {2: (b"A", False), 3: (b"cat", False)}
    plain = {0: (b"cat", False), 1: (b"A", False), 2: (b"\xf0", False)}
    for teacher, student, expected in ((pieces, plain, {2: 1, 1: 2, 3: 0}), (plain, pieces, {0: 3, 1: 2, 2: 1})):
        found = align_vocabularies(teacher, student, teacher_rows=4, student_rows=4).student_of_teacher
        assert {i: int(s) for i, s in enumerate(found) if s >= 0} == expected
    same = align_vocabularies(pieces, pieces, teacher_rows=4, student_rows=4)
    assert same.kind == "identical"
    assert same.student_of_teacher.tolist() == [0, 1, 2, 3]


def test_rows_inside_two_different_prefixes_do_not_speak_for_each_other():
    tokens = {0: (b" ", False), 1: (b"yes", False), 2: (b"x", False)}
    assert align_answer([0, 1], [2, 1], tokens, tokens, teacher_offset=1, student_offset=1).tolist() == [-1, 1]
    assert align_answer([0, 1], [0, 1], tokens, tokens, teacher_offset=1, student_offset=1).tolist() == [0, 1]


@given(
    st.dictionaries(st.integers(0, 30), st.tuples(st.binary(max_size=4), st.sampled_from(["text", "control", "piece"])))
)
def test_a_table_comes_back_from_a_cache_with_its_byte_pieces(entries):
    table = {
        index: (BytePiece(content) if kind == "piece" else content, kind == "control")
        for index, (content, kind) in entries.items()
    }
    found = restored_tokens(unpack_tokens(pack_tokens(stored_tokens(table), 31)))
    assert found == table
    assert {index: type(content) for index, (content, _) in found.items()} == {
        index: type(content) for index, (content, _) in table.items()
    }
