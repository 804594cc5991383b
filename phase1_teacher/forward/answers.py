"""Answers by the teacher itself, for samples without ground truth (`cache.generate_missing`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from firstsight.generation import generate_answers
from phase1_teacher.forward.unit_batches import EncodedSample
from phase1_teacher.planning.job import DumpJob


class TeacherAnswers:
    """Lets the teacher answer the samples that have no answer.

    Sampling is seeded by the recipe's seed and the samples that are answered together, so a unit gets the same answers
    from whichever worker computes it.

    Args:
        model: the teacher.
        job: from `prepare_dump`.
    """

    def __init__(self, model: Any, job: DumpJob) -> None:
        self.model = model
        self.recipe = job.recipe.cache
        self.teacher = job.pair.teacher
        self.generated = 0
        """Answers so far."""

    def complete(self, samples: Sequence[EncodedSample]) -> list[EncodedSample]:
        """The samples, each with an answer in its `encoded`."""
        waiting = [sample for sample in samples if sample.sample.answer is None]
        if not waiting:
            return list(samples)
        names = "".join(sample.key for sample in waiting)
        seed = hashlib.sha256(f"{self.recipe.generate_seed} {names}".encode()).digest()
        answers = generate_answers(
            self.model,
            self.teacher,
            [sample.encoded for sample in waiting],
            max_new_tokens=self.recipe.generate_max_tokens,
            temperature=self.recipe.generate_temperature,
            seed=int.from_bytes(seed[:7], "little"),
            text_only=True,
        )
        self.generated += len(waiting)
        found = dict(zip([sample.key for sample in waiting], answers, strict=True))
        return [
            replace(sample, encoded=sample.encoded.with_answer(found[sample.key])) if sample.key in found else sample
            for sample in samples
        ]
