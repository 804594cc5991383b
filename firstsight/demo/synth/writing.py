"""A data set on disk: OUT/train.jsonl, OUT/validation.jsonl and OUT/images/, the same bytes for the same seed.

If only some samples have labels, those are in OUT/labelled.jsonl as well. If labels are swapped, or each is one of many answers, the
training samples are also in OUT/questions.jsonl without their labels, for the teacher to answer. The samples are drawn by `questions`,
each with its one answer, or by `descriptions`, each with one of many.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from firstsight.demo.synth.captions import caption
from firstsight.demo.synth.drawing import render
from firstsight.demo.synth.questions import ask
from firstsight.demo.synth.scenes import CATEGORIES, ENVIRONMENTS, Clip, Scene, few_things, sample_clip
from firstsight.errors import DataError

Split = Literal["train", "validation"]
_SPLITS: tuple[Split, Split] = ("train", "validation")
_SHARES = {"attributes": "object_recognition"}
"""A question of the first category is about the image of the second in the same block."""
DESCRIPTION = "description"
"""Category of what `descriptions` draws."""


@dataclass(frozen=True, kw_only=True)
class SynthSummary:
    """What was written."""

    samples: dict[Split, int]
    """Number of samples by split."""
    images: int
    bytes: int
    swapped: int = 0
    """Number of training samples that were given another sample's answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A sample before it is written."""

    name: str
    clip: Clip
    pictures: str
    """Stem of its images' file names."""
    category: str
    environment: str
    question: str
    answer: str


def questions(seed: int, split: Split, count: int) -> Iterator[Question]:
    """The first `count` samples of a split: blocks of one question per category, each block in the next environment.

    A smaller count gives the beginning of a larger one.
    """
    for block in range(-(-count // len(CATEGORIES))):
        environment = ENVIRONMENTS[block % len(ENVIRONMENTS)]
        drawn: dict[str, tuple[Clip, str]] = {}
        for place, category in enumerate(CATEGORIES[: count - block * len(CATEGORIES)]):
            rng = np.random.default_rng([seed, _SPLITS.index(split), block, place])
            name = f"{split}-{block * len(CATEGORIES) + place:06d}"
            shared = _SHARES.get(category)
            clip, pictures = drawn[shared] if shared else (sample_clip(rng, environment, category), name)
            drawn[category] = clip, pictures
            question, answer = ask(rng, clip, category)
            yield Question(
                name=name,
                clip=clip,
                pictures=pictures,
                category=category,
                environment=environment,
                question=question,
                answer=answer,
            )


def descriptions(seed: int, split: Split, count: int) -> Iterator[Question]:
    """The first `count` samples of a split of images to describe, in every environment in turn.

    Each image shows one to three things on the surface; its answer is one wording, drawn with the probability in `captions.wordings`.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, len(_SPLITS) + _SPLITS.index(split), number, 0])
        environment = ENVIRONMENTS[number % len(ENVIRONMENTS)]
        clip = few_things(rng, environment)
        question, answer = caption(rng, clip)
        name = f"{split}-{number:06d}"
        yield Question(
            name=name,
            clip=clip,
            pictures=name,
            category=DESCRIPTION,
            environment=environment,
            question=question,
            answer=answer,
        )


def write_dataset(
    out: Path,
    *,
    train: int,
    validation: int,
    seed: int,
    labels: int | None = None,
    swapped: float = 0.0,
    described: bool = False,
    progress: bool = True,
) -> SynthSummary:
    """Draw and write both splits; `out` appears once everything is written.

    Args:
        out: a new or empty folder.
        train: training samples.
        validation: validation samples; all have their answers.
        seed: seed of everything that is drawn.
        labels: training samples that keep their answer, drawn at random; they are in `labelled.jsonl` as well. None: all.
        swapped: share of the training samples of each category, drawn at random, that have another answer of that category.
        described: draw images to describe (`descriptions`) instead of questions with one answer.
        progress: show a bar.

    Raises:
        DataError: `out` holds something already, there are fewer samples than labels, or an answer has no other to swap with.
    """
    if labels is not None and labels > train:
        raise DataError(
            f"{labels:,} training samples cannot keep their answers, since there are only {train:,}; lower the number of labels"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a new or empty folder, got one that holds files; choose another or delete it")
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "images").mkdir(parents=True)
    sizes: dict[Split, int] = {"train": train, "validation": validation}
    seen: dict[str, Split] = {}
    total = images = 0
    labelled = _labelled(seed, train, labels)
    draw = descriptions if described else questions
    wrong = _swapped(seed, list(draw(seed, "train", train)), swapped) if swapped else {}
    few: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    with tqdm(total=train + validation, desc="drawing", unit=" sample", disable=not progress, leave=False) as bar:
        for split, count in sizes.items():
            with (scratch / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
                for number, question in enumerate(draw(seed, split, count)):
                    names = [f"images/{question.pictures}-{i}.png" for i in range(len(question.clip.frames))]
                    for name, scene in zip(names, question.clip.frames, strict=True):
                        if question.pictures != question.name:
                            continue
                        data = _png(scene)
                        if seen.setdefault(hashlib.sha256(data).hexdigest(), split) != split:
                            raise DataError(f"seed {seed}: {name} is in both splits; choose another seed")
                        (scratch / name).write_bytes(data)
                        total += len(data)
                        images += 1
                    answer = wrong.get(number, question.answer) if split == "train" else question.answer
                    row = _row(question, names, answer)
                    if split == "train":
                        asked.append(row | {"messages": row["messages"][:1]})
                        if labels is not None and number in labelled:
                            few.append(row)
                        elif labels is not None:
                            row = asked[-1]
                    lines.write(_line(row))
                    bar.update()
    if labels is not None:
        (scratch / "labelled.jsonl").write_text("".join(map(_line, few)), encoding="utf-8", newline="\n")
    if swapped or described:
        (scratch / "questions.jsonl").write_text("".join(map(_line, asked)), encoding="utf-8", newline="\n")
    if out.exists():
        out.rmdir()
    os.replace(scratch, out)
    return SynthSummary(samples=sizes, images=images, bytes=total, swapped=len(wrong))


def _labelled(seed: int, train: int, labels: int | None) -> frozenset[int]:
    """Numbers of the training samples that keep their answer."""
    if labels is None:
        return frozenset(range(train))
    return frozenset(np.random.default_rng([seed, len(_SPLITS)]).permutation(train)[:labels].tolist())


def _swapped(seed: int, drawn: Sequence[Question], share: float) -> dict[int, str]:
    """For the number of each sample that is given another answer: that answer, of the same category.

    Raises:
        DataError: all answers of a category are the same.
    """
    rng = np.random.default_rng([seed, len(_SPLITS) + 1])
    found: dict[int, str] = {}
    for category in dict.fromkeys(question.category for question in drawn):
        numbers = [number for number, question in enumerate(drawn) if question.category == category]
        for number in rng.permutation(numbers)[: round(share * len(numbers))].tolist():
            others = [drawn[other].answer for other in numbers if drawn[other].answer != drawn[number].answer]
            if not others:
                raise DataError(
                    f"{len(numbers):,} training samples of category {category} have no two different answers to swap; draw more "
                    "training samples"
                )
            found[number] = others[int(rng.integers(len(others)))]
    return found


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    return buffer.getvalue()


def _row(question: Question, images: list[str], answer: str) -> dict[str, Any]:
    """The `messages` + `images` form that TRL takes."""
    asked = [*({"type": "image"} for _ in images), {"type": "text", "text": question.question}]
    return {
        "id": question.name,
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "images": images,
        "category": question.category,
        "environment": question.environment,
    }
