"""Teacher ids to student ids, by token bytes.

    alignment = align_vocabularies(token_table(teacher_tokenizer), token_table(student_tokenizer),
                                   teacher_rows=152_064, student_rows=151_936)

Two tokens are the same when their bytes are and both are special or both are not. Head rows beyond the tokenizer (padding)
are no tokens and never enter a distribution. Where the two tokenizers cut an answer differently, `align_answer` finds the
positions at which both have just finished the same bytes: only there can the teacher's row be used for the student's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstsight.errors import AlignmentError
from storage.format.head_table import BYTE_PIECE, CONTROL_TOKEN, TEXT_TOKEN

# V_t rows of the teacher's head, V_s rows of the student's head, P student tokens of an answer


class BytePiece(bytes):
    """The byte of a byte-fallback piece such as `<0x41>`: equal to the piece `A`, but not the one an encoder uses if it has both."""


Token = tuple[bytes, bool]
"""Bytes of a token and whether it is a control token."""


@dataclass(frozen=True, kw_only=True)
class VocabularyAlignment:
    """Which student id each teacher id is."""

    student_of_teacher: NDArray[np.int64]
    """[V_t]; -1: the student has no such token."""
    teacher_of_student: NDArray[np.int64]
    """[V_s]; -1: the teacher has no such token."""
    teacher_tokens: NDArray[np.bool_]
    """[V_t]: rows that are tokens, not padding."""
    kind: str
    """`identical`: equal ids; `permuted`: same tokens, other ids; `partial`: some tokens are only on one side."""

    @property
    def shared(self) -> NDArray[np.bool_]:
        """[V_s]: student ids that both vocabularies have."""
        return self.teacher_of_student >= 0

    def shared_ranges(self) -> list[list[int]]:
        """The shared student ids as half-open ranges `[start, stop)`."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.shared.astype(np.int8), [0]])))
        return [[int(a), int(b)] for a, b in edges.reshape(-1, 2)]

    @property
    def digest(self) -> str:
        """sha256 of the map, 64 hex digits."""
        return hashlib.sha256(self.teacher_of_student.astype("<i8").tobytes()).hexdigest()


def token_table(tokenizer: Any) -> dict[int, Token]:
    """Bytes of every token of a tokenizer, by id.

    Byte-level BPE (GPT-2's byte alphabet) and SentencePiece pieces (`▁`, `<0x0A>`) are distinguished by the backend's decoder.
    """
    added = tokenizer.added_tokens_decoder
    byte_level = _is_byte_level(tokenizer)
    return {index: _token(text, index, added, byte_level) for text, index in tokenizer.get_vocab().items()}


def table_digest(table: dict[int, Token]) -> str:
    """sha256 over ids, bytes and kinds of all tokens, 64 hex digits."""
    digest = hashlib.sha256()
    for index in sorted(table):
        content, special = table[index]
        digest.update(b"%d %d %d " % (index, special, len(content)) + content)
    return digest.hexdigest()


def stored_tokens(table: dict[int, Token]) -> dict[int, tuple[bytes, int]]:
    """A token table as the head of an exact cache stores it."""

    def kind(content: bytes, special: bool) -> int:
        return CONTROL_TOKEN if special else BYTE_PIECE if isinstance(content, BytePiece) else TEXT_TOKEN

    return {index: (bytes(content), kind(content, special)) for index, (content, special) in table.items()}


def restored_tokens(stored: Mapping[int, tuple[bytes, int]]) -> dict[int, Token]:
    """The token table that `stored_tokens` was made from."""
    return {
        index: (BytePiece(content) if kind == BYTE_PIECE else content, kind == CONTROL_TOKEN)
        for index, (content, kind) in stored.items()
    }


def align_vocabularies(
    teacher: dict[int, Token], student: dict[int, Token], *, teacher_rows: int, student_rows: int
) -> VocabularyAlignment:
    """Map teacher ids to student ids.

    Args:
        teacher: token table of the teacher's tokenizer.
        student: token table of the student's tokenizer.
        teacher_rows: V_t, rows of the teacher's head, padding included.
        student_rows: V_s, rows of the student's head, padding included.

    Raises:
        AlignmentError: the tokenizer has ids beyond its head, or nothing is shared.
    """
    for name, table, rows in (("teacher", teacher, teacher_rows), ("student", student, student_rows)):
        if max(table, default=-1) >= rows:
            raise AlignmentError(
                f"the {name}'s tokenizer has id {max(table):,}, but its head has only {rows:,} rows; the files do not belong together"
            )
    # where a tokenizer holds the same bytes twice, the one that its encoder produces wins: never a byte-fallback piece, else
    # the lowest id
    student_of = {token: index for index, token in sorted(student.items(), key=_least_likely_first)}
    to_student = np.full(teacher_rows, -1, dtype=np.int64)
    to_teacher = np.full(student_rows, -1, dtype=np.int64)
    for index, token in sorted(teacher.items(), key=_least_likely_first):
        other = index if student.get(index) == token else student_of.get(token)
        if other is not None:
            if to_teacher[other] >= 0:
                to_student[to_teacher[other]] = -1
            to_student[index] = other
            to_teacher[other] = index
    shared = int((to_teacher >= 0).sum())
    if shared == 0:
        raise AlignmentError("teacher and student share no token; their tokenizers cannot be aligned")
    same_ids = bool((to_student[to_student >= 0] == np.flatnonzero(to_student >= 0)).all())
    whole = shared == len(teacher) == len(student)
    return VocabularyAlignment(
        student_of_teacher=to_student,
        teacher_of_student=to_teacher,
        teacher_tokens=np.isin(np.arange(teacher_rows), list(teacher)),
        kind="partial" if not whole else "identical" if same_ids else "permuted",
    )


def _least_likely_first(entry: tuple[int, Token]) -> tuple[bool, int]:
    index, (content, _) = entry
    return not isinstance(content, BytePiece), -index


def align_answer(
    teacher_ids: Sequence[int],
    student_ids: Sequence[int],
    teacher: dict[int, Token],
    student: dict[int, Token],
    *,
    teacher_offset: int = 0,
    student_offset: int = 0,
) -> NDArray[np.int64]:
    """For each answer position of the student, the teacher's that corresponds to it, or -1.

    Both sequences spell the same answer, end of turn included. Position i of the student predicts its token i from the
    bytes before it; the teacher's row j corresponds to it if the teacher's tokens before j spell exactly these bytes. The
    closing control tokens correspond to each other, whatever their bytes.

    Args:
        teacher_ids: the answer in the teacher's tokens.
        student_ids: in the student's.
        teacher: token table of the teacher's tokenizer.
        student: of the student's.
        teacher_offset: bytes that the teacher's tokens spell before the answer, such as a space (`Prompter.spelled_prefix`).
        student_offset: the same for the student's.

    Returns:
        int64 [P].

    Raises:
        AlignmentError: the two sequences spell different text.
    """
    teacher_starts, teacher_text = _starts(teacher_ids, teacher, teacher_offset)
    student_starts, student_text = _starts(student_ids, student, student_offset)
    if teacher_text != student_text:
        raise AlignmentError(f"the two tokenizers spell an answer differently: {teacher_text!r} and {student_text!r}")
    same_prefix = _prefix(teacher_ids, teacher, teacher_offset) == _prefix(student_ids, student, student_offset)
    position = {start: j for j, start in reversed(list(enumerate(teacher_starts))) if start >= 0 or same_prefix}
    return np.array([position.get(start, -1) for start in student_starts], dtype=np.int64)


def _starts(ids: Sequence[int], table: dict[int, Token], offset: int) -> tuple[list[int], bytes]:
    """Where each token begins, in bytes from the beginning of the answer, and the answer's bytes."""
    starts, text = [], b""
    for index in ids:
        starts.append(len(text) - offset)
        content, special = table[index]
        text += b"" if special else content
    return starts, text[offset:]


def _prefix(ids: Sequence[int], table: dict[int, Token], offset: int) -> bytes:
    """What the tokens spell before the answer."""
    return b"".join(content for content, special in (table[index] for index in ids) if not special)[:offset]


def spelling(tokenizer: Any, ids: Sequence[int]) -> bytes:
    """The bytes that tokens spell, control tokens left out."""
    added, byte_level = tokenizer.added_tokens_decoder, _is_byte_level(tokenizer)
    tokens = [
        _token(text, index, added, byte_level)
        for text, index in zip(tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True)
    ]
    return b"".join(content for content, special in tokens if not special)


def _token(text: str, index: int, added: Any, byte_level: bool) -> Token:
    if index in added:
        return added[index].content.encode(), bool(added[index].special)
    return (_byte_level_bytes(text) if byte_level else _piece_bytes(text)), False


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(type(backend.decoder)) + str(backend.decoder)


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes: printable bytes are themselves, the rest follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


def _byte_level_bytes(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _piece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BytePiece([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
