"""A model's answers to samples, one record each: question, true answer, the model's answer, how right and how sure it was.

An empty answer, or one with a NaN, is also a record and is marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from firstsight.console import Heartbeat
from firstsight.data.images import image_name
from firstsight.data.samples import Sample
from firstsight.generation import TokenWatch, confidence, generate_answers, stop_ids
from firstsight.prompting import Prompter
from phase2_student.evaluation.metrics.answer_metrics import (
    anls,
    choice_match,
    choice_options,
    choice_undecided,
    exact_match,
    token_f1,
    vqa_accuracy,
)
from phase2_student.evaluation.results import AnswerRecord


def answer_records(
    model: Any,
    prompter: Prompter,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int,
    root: Path,
    label: str,
    progress: bool,
) -> list[AnswerRecord]:
    """Greedy answers to all samples, in their order.

    Args:
        model: in eval mode.
        prompter: that model's prompter.
        samples: samples with answers or without.
        batch_size: samples answered at once.
        max_new_tokens: maximum length of an answer, end of turn included.
        root: images are recorded relative to it.
        label: shown on the progress bar.
        progress: show the bar.
    """
    records = []
    stops = stop_ids(model, prompter)
    beats = Heartbeat(len(samples), unit="answer", label=label)
    with tqdm(total=len(samples), desc=label, unit=" sample", disable=not progress) as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            watch = TokenWatch()
            prompts = list(beats.waiting(prompter.encode(sample, []) for sample in batch))
            answers = generate_answers(model, prompter, prompts, max_new_tokens=max_new_tokens, watch=watch)
            for row, (sample, ids) in enumerate(zip(batch, answers, strict=True)):
                records.append(
                    answer_record(
                        sample,
                        prompter.answer_text(ids),
                        root,
                        tokens=len(ids),
                        sure=confidence(watch.log_probabilities(row, len(ids))),
                        cut=ids[-1] not in stops if ids else True,
                    )
                )
            bar.update(len(batch))
            beats.beat(start + len(batch))
    return records


def answer_record(
    sample: Sample, answer: str, root: Path, *, tokens: int, sure: float | None, cut: bool
) -> AnswerRecord:
    """The record of one answer.

    Args:
        sample: a sample with a true answer or without.
        answer: the text of the model.
        root: images are recorded relative to it.
        tokens: length of the answer, end of turn included.
        sure: its confidence; None if a logit was not finite.
        cut: whether it reached the maximum length without an end of turn.
    """
    truth = sample.answer
    options = choice_options(sample.question, sample.options)
    scores: dict[str, Any] = {"exact": None}
    if truth is not None:
        scores = {
            "exact": exact_match(answer, truth),
            "f1": token_f1(answer, truth),
            "anls": anls(answer, truth),
            "choice": choice_match(answer, truth, options),
            "undecided": choice_undecided(answer, truth, options),
        }
    if sample.truths:
        scores |= {"vqa": vqa_accuracy(answer, sample.truths), "truths": list(sample.truths)}
    return AnswerRecord(
        id=sample.id,
        key=sample.key,
        category=sample.category,
        environment=sample.environment,
        question=sample.question,
        images=[image_name(image, root) for image in sample.images],
        truth=truth,
        answer=answer,
        **scores,
        empty=not answer.strip(),
        tokens=tokens,
        confidence=sure,
        nonfinite=sure is None,
        cut=cut,
    )
