"""The answers that the teacher gave in a dump, as rows of training data.

    written = write_answers(recipe, "cache.zarr", Path("data/answers.jsonl"), split="train")

A row is the sample in the form `messages`. Image paths are relative to the recipe's image root, and the last message is the
teacher's answer. Rows are in the order of the data.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from firstsight.answer_alignment import TeacherTokens
from firstsight.data.forms.parts import MARK
from firstsight.data.images import ImageSource, InlineImage, image_name, opened
from firstsight.data.samples import Sample, iter_samples
from firstsight.data.write import canonical_row
from firstsight.errors import DataError
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase1_teacher.cached_student import student_of
from storage.exact import ExactCache, open_any_cache
from storage.reader import Cache
from storage.wording import counted


@dataclass(kw_only=True)
class WrittenAnswers:
    """What `write_answers` wrote, and what it did not."""

    rows: int = 0
    cut: int = 0
    """Answers that reached the maximum length without an end of turn; not written."""
    kept_cut: int = 0
    """The same, written because `keep_cut` asks for it."""
    empty: int = 0
    """Answers without text; not written."""
    labelled: int = 0
    """Rows that have an answer of their own; not written."""
    skipped: int = 0
    """Rows that the dump skipped; not written."""
    missing: int = 0
    """Rows that the cache does not hold; not written."""
    unreadable: int = 0
    """Rows with an image that cannot be read, if `cache.on_error: skip` leaves them out; not written."""
    literal_marks: bool = False
    """Whether some text contains `<image>` or a similar marker literally: the file must then be read with `data.format: trl`."""


@dataclass(frozen=True)
class _Tokens:
    """How the token ids of a cache are turned into text."""

    text: Callable[[Sequence[int]], str]
    ended: Callable[[Sequence[int]], bool]


def write_answers(
    recipe: Recipe,
    location: str,
    out: Path,
    *,
    split: Literal["train", "validation"] = "train",
    keep_cut: bool = False,
    progress: bool = False,
) -> WrittenAnswers:
    """Write the teacher's answer for every row of a split that has none. The file is written whole or not at all.

    Args:
        recipe: names the data, and the student if the cache holds the student's tokens.
        location: where the cache, of either kind, is.
        out: the file; must not exist.
        split: the rows to write.
        keep_cut: write answers that were cut at the maximum length as well. A student trained on such a label learns to stop there.
        progress: show a bar.

    Raises:
        DataError: `out` exists, the cache holds no generated answers or is for another student, or there is nothing to write.
        CacheError: no cache was found.
    """
    if out.exists():
        raise DataError(f"{out} exists; give another name with --out, or delete it")
    cache = open_any_cache(location)
    if cache.spec.get("generation") is None:
        raise DataError(
            f"{location} holds no answers by the teacher: it was dumped without cache.generate_missing; dump rows without "
            "answers with cache.generate_missing: true"
        )
    tokens = _tokens(recipe, cache)
    written = WrittenAnswers()
    partial = out.with_name(f".{out.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    left_out_rows: list[str] = []
    rows = iter_samples(recipe.source(split), left_out=left_out_rows)
    samples = tqdm(rows, desc="answers", unit=" sample", disable=not progress, leave=False)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in _rows(recipe, samples, cache, tokens, written, keep_cut):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written.rows += 1
        written.unreadable = len(left_out_rows)
        if not written.rows:
            raise DataError(
                f"{recipe.source(split)}: no answer by the teacher to write: {'; '.join(left_out(written))}"
            )
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return written


_MISSING = "not in the cache: new, edited or not dumped yet"
_CUT = "cut at cache.generate_max_tokens (--keep-cut writes such answers; a student then learns to stop there)"


def left_out(written: WrittenAnswers) -> list[str]:
    """Why rows were not written, and how many for each reason."""
    reasons = {
        ("row has an answer of its own", "rows have an answer of their own"): written.labelled,
        ("row was skipped by the dump", "rows were skipped by the dump"): written.skipped,
        (f"row is {_MISSING}", f"rows are {_MISSING}"): written.missing,
        ("row has an image that cannot be read", "rows have an image that cannot be read"): written.unreadable,
        ("row got an empty answer", "rows got an empty answer"): written.empty,
        (f"answer was {_CUT}", f"answers were {_CUT}"): written.cut,
    }
    return [counted(count, *words) for words, count in reasons.items() if count]


def _rows(
    recipe: Recipe,
    samples: Iterable[Sample],
    cache: Cache | ExactCache,
    tokens: _Tokens,
    written: WrittenAnswers,
    keep_cut: bool,
) -> Iterator[dict[str, Any]]:
    skipped = cache.skipped()
    for sample in samples:
        if sample.answer is not None:
            written.labelled += 1
        elif sample.key not in cache:
            written.skipped += sample.key in skipped
            written.missing += sample.key not in skipped
        else:
            ids = _generated(cache, sample.key)
            text = tokens.text(ids)
            ended = tokens.ended(ids)
            if not ended:
                text = text.rstrip("\ufffd")  # a character that was cut in half
            if not text.strip():
                written.empty += 1
            elif not ended and not keep_cut:
                written.cut += 1
            else:
                written.kept_cut += not ended
                row = canonical_row(sample, [_image(image, recipe.image_root, sample) for image in sample.images])
                row["messages"].append({"role": "assistant", "content": [{"type": "text", "text": text}]})
                written.literal_marks |= any(
                    part["type"] == "text" and MARK.search(part["text"]) is not None
                    for message in row["messages"]
                    for part in message["content"]
                )
                yield row


def _generated(cache: Cache | ExactCache, key: str) -> list[int]:
    """Token ids of the last answer; answers before it come from the data."""
    if isinstance(cache, ExactCache):
        rows = cache.rows(key)
        ids, turns = rows.target_ids, rows.turns
    else:
        sample = cache[key]
        ids, turns = sample.targets.target_ids, sample.turns
    found: list[int] = ids.tolist()
    return found[len(found) - turns[-1].positions :] if turns else found


def _tokens(recipe: Recipe, cache: Cache | ExactCache) -> _Tokens:
    if isinstance(cache, ExactCache):
        teacher = TeacherTokens.of_cache(cache.spec, cache.head().tokens())
        return _Tokens(teacher.text, teacher.ended)
    student = student_of(recipe, cache)
    return _Tokens(lambda ids: _student_text(student, ids), lambda ids: _ended(student, ids))


def _ended(student: Prompter, ids: Sequence[int]) -> bool:
    end = student.end_of_turn_ids
    return list(ids[-len(end) :]) == end


def _student_text(student: Prompter, ids: Sequence[int]) -> str:
    return student.answer_text(ids[: -len(student.end_of_turn_ids)] if _ended(student, ids) else ids)


def _image(image: ImageSource, root: Path, sample: Sample) -> str:
    """The image's path below the root, or a data URL if the data hold the image itself."""
    if not isinstance(image, InlineImage):
        return image_name(image, root)
    with opened(image, sample.place) as picture:
        kind = Image.MIME.get(picture.format or "", "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(image.data).decode()}"
