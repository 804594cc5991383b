"""One record per sample: what was asked, what is true, what the model answered, and how right and how sure it was.

A NaN or an empty answer is a record like any other, marked as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from firstsight.data.samples import Sample
from firstsight.generation import TokenWatch, confidence, generate_answers
from firstsight.prompting import Prompter
from phase2_student.evaluation.answer_metrics import anls, choice_match, choice_options, exact_match, token_f1


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
) -> list[dict[str, Any]]:
    """Greedy answers to all samples, in their order.

    Args:
        model: in eval mode.
        prompter: the model's.
        samples: with answers.
        batch_size: of the generation.
        max_new_tokens: longest answer, end of turn included.
        root: the images are recorded relative to it.
        label: of the progress bar.
        progress: show it.
    """
    records = []
    end = prompter.end_of_turn_ids[-1]
    with tqdm(total=len(samples), desc=label, unit=" sample", disable=not progress) as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            watch = TokenWatch()
            prompts = [prompter.encode(sample, []) for sample in batch]
            answers = generate_answers(model, prompter, prompts, max_new_tokens=max_new_tokens, watch=watch)
            for row, (sample, ids) in enumerate(zip(batch, answers, strict=True)):
                text = prompter.answer_text(ids)
                sure = confidence(watch.log_probabilities(row, len(ids)))
                record = answer_record(sample, text, root)
                record |= {"tokens": len(ids), "confidence": sure, "nonfinite": sure is None, "cut": ids[-1:] != [end]}
                records.append(record)
            bar.update(len(batch))
    return records


def answer_record(sample: Sample, answer: str, root: Path) -> dict[str, Any]:
    """What was asked and answered, and the metrics of the answer."""
    truth = sample.answer or ""
    return {
        "id": sample.id,
        "category": sample.category,
        "environment": sample.environment,
        "question": sample.question,
        "images": [path.relative_to(root).as_posix() for path in sample.images],
        "truth": sample.answer,
        "answer": answer,
        "exact": exact_match(answer, truth),
        "f1": token_f1(answer, truth),
        "anls": anls(answer, truth),
        "choice": choice_match(answer, truth, choice_options(sample.question, sample.options)),
        "empty": not answer.strip(),
    }
