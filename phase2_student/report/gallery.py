"""Held-out images, each with its question, the true answer, and every model's answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from firstsight.data.images import image_path
from firstsight.data.samples import Sample
from firstsight.errors import DataError
from firstsight.page import picture
from phase2_student.evaluation.results import ModelResult

_LONGEST = 320  # pixels of an image


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer."""

    model: str
    series: int
    text: str
    right: bool | None
    """Whether it is right; None if there is no true answer."""
    flag: str
    """`empty`, `not finite`, `cut`, or an empty string."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A sample of the gallery."""

    id: str
    category: str
    environment: str
    question: str
    truth: str | None
    pictures: tuple[Markup, ...]
    answers: tuple[Answer, ...]


def choose(model: ModelResult, count: int) -> list[int]:
    """Which samples to show, in their order: alternating between categories, and between right and wrong answers of the model."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, record in enumerate(model.samples):
        groups.setdefault((str(record.category), bool(record.exact)), []).append(index)
    order = [groups[key] for key in sorted(groups)]
    in_turn = (index for turn in itertools.zip_longest(*order) for index in turn if index is not None)
    return sorted(itertools.islice(in_turn, count))


def cards(
    models: Sequence[ModelResult], indices: Sequence[int], series: dict[str, int], root: Path | None
) -> tuple[list[Card], int]:
    """The cards, and how many images were not found or could not be read.

    Args:
        models: the models of an evaluation, with their records in the same order.
        indices: which records to show.
        series: the number of each model's series.
        root: image paths are relative to it and must stay below it; None: no images.
    """
    made, missing = [], 0
    for index in indices:
        record = models[0].samples[index]
        pictures = []
        for name in record.images:
            shown = _picture(name, root)
            missing += shown is None
            pictures += [] if shown is None else [shown]
        made.append(
            Card(
                id=record.id,
                category=_words(record.category),
                environment=_words(record.environment),
                question=record.question,
                truth=record.truth,
                pictures=tuple(pictures),
                answers=tuple(_answer(model, index, series) for model in models),
            )
        )
    return made, missing


def _answer(model: ModelResult, index: int, series: dict[str, int]) -> Answer:
    record = model.samples[index]
    flags = (("not finite", record.nonfinite), ("empty", record.empty), ("cut", record.cut))
    return Answer(
        model=model.name,
        series=series[model.name],
        text=record.answer,
        right=record.exact,
        flag=next((words for words, applies in flags if applies), ""),
    )


def _picture(name: str, root: Path | None) -> Markup | None:
    if root is None:
        return None
    try:
        path = image_path(name, root, "the evaluation")
        sample = Sample(
            id=name,
            messages=(),
            images=(path,),
            times=None,
            category=None,
            environment=None,
            place=name,
        )
        return picture(sample.open_images()[0], longest=_LONGEST, lossy=True)
    except DataError:
        return None


def _words(name: str | None) -> str:
    return "" if name is None else name.replace("_", " ")
