"""The teacher's own answers, for samples without ground truth (`cache.generate_missing`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from firstsight.errors import TargetError
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
        """Number of answers so far."""

    def complete(
        self, samples: Sequence[EncodedSample], refuse: Callable[[EncodedSample, TargetError], None]
    ) -> list[EncodedSample]:
        """The samples with an answer in `encoded`, without those that the teacher cannot answer.

        Args:
            samples: the samples of one forward pass.
            refuse: called with each of the others and the reason; may raise it.
        """
        waiting = [sample for sample in samples if sample.sample.answer is None]
        if not waiting:
            return list(samples)
        found = self._answers(waiting, refuse)
        self.generated += len(found)
        return [
            replace(sample, encoded=sample.encoded.with_answer(found[sample.key])) if sample.key in found else sample
            for sample in samples
            if sample.sample.answer is not None or sample.key in found
        ]

    def _answers(
        self, waiting: Sequence[EncodedSample], refuse: Callable[[EncodedSample, TargetError], None]
    ) -> dict[str, list[int]]:
        """Token ids of the answers, by key."""
        names = "".join(sample.key for sample in waiting)
        seed = hashlib.sha256(f"{self.recipe.generate_seed} {names}".encode()).digest()
        try:
            answers = generate_answers(
                self.model,
                self.teacher,
                [sample.encoded for sample in waiting],
                max_new_tokens=self.recipe.generate_max_tokens,
                temperature=self.recipe.generate_temperature,
                seed=int.from_bytes(seed[:7], "little"),
                text_only=True,
            )
        except RuntimeError as error:  # torch.multinomial refuses the whole batch if one distribution is not finite
            if "probability tensor" not in str(error):
                raise
            if len(waiting) == 1:
                reason = "the teacher cannot answer it: its probabilities are not finite; try teacher.dtype: bfloat16"
                refuse(waiting[0], TargetError(f"{waiting[0].name}: {reason}"))
                return {}
            return {key: ids for sample in waiting for key, ids in self._answers([sample], refuse).items()}
        return dict(zip([sample.key for sample in waiting], answers, strict=True))
