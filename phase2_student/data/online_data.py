"""Samples for online training: inputs of the student and of the teacher, and which of their answer positions correspond.

data = OnlineDataset(samples, pair)          # in the order, and with the lengths, of the cached `DistillationDataset`
loader = DataLoader(data, collate_fn=OnlineCollator(student_pad_id, teacher_pad_id))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError
from firstsight.identity import image_settings
from firstsight.pair import Pair
from firstsight.prompting import Encoded, answer_index, collate

# P answer positions of a sample, N of a batch, M of them with soft targets


@dataclass(frozen=True, kw_only=True)
class OnlineItem:
    """One sample as inputs of both models."""

    student: Encoded
    teacher: Encoded
    rows: Tensor
    """int64 [P]: the teacher's answer position for each of the student's; -1: no soft target."""


class OnlineDataset(Dataset[OnlineItem]):
    """Samples with the teacher's inputs in place of stored targets.

    Args:
        samples: of one data file; each with an answer.
        pair: of teacher and student.

    Raises:
        DataError: samples without an answer.
    """

    skipped = 0

    def __init__(self, samples: Sequence[Sample], pair: Pair) -> None:
        unanswered = [sample.place for sample in samples if sample.answer is None]
        if unanswered:
            raise DataError(
                f"{len(unanswered)} samples have no answer ({', '.join(unanswered[:5])}): online training cannot let the teacher "
                "answer; add answers, or dump with cache.generate_missing: true and train on the cache"
            )
        self.samples = list({sample.key: sample for sample in samples}.items())
        self.pair = pair
        self._same_inputs = _prompts_alike(pair)
        self._lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> OnlineItem:
        """The sample; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""
        _, sample = self.samples[index if index >= 0 else ~index]
        answer: list[int] | None = None if index >= 0 else []
        student = self.pair.student.encode(sample, answer)
        teacher = student if self._same_inputs else self.pair.teacher.encode(sample, answer)
        try:
            rows = self.pair.answer_rows(teacher.target_ids.numpy(), student.target_ids.numpy())
        except AlignmentError as error:
            raise AlignmentError(f"{sample.place}: sample {sample.id!r}: {error}") from None
        return OnlineItem(student=student, teacher=teacher, rows=torch.from_numpy(rows))

    def lengths(self) -> list[int]:
        """Tokens of every sample for the student, prompt, images and answer; no image is decoded."""
        if self._lengths is None:
            student = self.pair.student
            self._lengths = [
                student.prompt_tokens(sample)[0] + len(student.answer_ids(sample.answer or ""))
                for _, sample in self.samples
            ]
        return self._lengths


class OnlineCollator:
    """Items to one batch: padded inputs of both models, and the answer positions of all samples in a row.

    Args:
        student_pad_id: fills the student's `input_ids` on the right.
        teacher_pad_id: the teacher's.
        blank: the student's, as of `dataset.Collator`.
    """

    def __init__(self, student_pad_id: int, teacher_pad_id: int, blank: Encoded | None = None) -> None:
        self.student_pad_id = student_pad_id
        self.blank = blank
        self.teacher_pad_id = teacher_pad_id

    def __call__(self, items: Sequence[OnlineItem]) -> dict[str, Any]:
        """The student's inputs of `prompting.collate`, and with N answer positions of which M have soft targets:

        answer_rows, answer_columns, target_ids: int64 [N]; soft, hard: bool [N]; teacher_inputs: the teacher's inputs;
        teacher_rows, teacher_columns: int64 [M], its answer positions.
        """
        student, teacher = [item.student for item in items], [item.teacher for item in items]
        rows, columns = answer_index(student)
        teacher_rows, teacher_columns = answer_index(teacher)
        offsets = np.cumsum([0, *(each.positions for each in teacher)]).tolist()
        chosen = torch.cat([item.rows[item.rows >= 0] + offset for item, offset in zip(items, offsets, strict=False)])
        return {
            **collate(student, self.student_pad_id, self.blank),
            "answer_rows": rows,
            "answer_columns": columns,
            "target_ids": torch.cat([each.target_ids for each in student]),
            "soft": torch.cat([item.rows >= 0 for item in items]),
            "hard": torch.ones(len(rows), dtype=torch.bool),
            "teacher_inputs": collate(teacher, self.teacher_pad_id),
            "teacher_rows": teacher_rows[chosen],
            "teacher_columns": teacher_columns[chosen],
        }


def _prompts_alike(pair: Pair) -> bool:
    """Both processors make the same inputs, so that each image is opened once."""
    teacher, student = pair.teacher, pair.student
    backends: list[Any] = [getattr(each.tokenizer, "backend_tokenizer", None) for each in (teacher, student)]
    return (
        all(backend is not None for backend in backends)
        and backends[0].to_str() == backends[1].to_str()
        and teacher.processor.chat_template == student.processor.chat_template
        and image_settings(teacher) == image_settings(student)
    )
