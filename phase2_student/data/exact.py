"""Targets from an exact cache: the teacher's states as stored and its head, for a student of any vocabulary, at any temperature.

    source = ExactSource(open_exact_cache("exact.zarr"), prompter, rows=151_936, temperature=2.0)
    data = source.dataset(samples)           # refuses what does not fit, by name; opens no states
    complete = source.completion(device)     # reads the head
    batch = complete(source.collator()([data[0], data[1]]))

The loss is that of the teacher in memory: whole distributions, made chunk by chunk. The teacher's directory is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from firstsight.answer_alignment import AnswerAlignment, TeacherTokens
from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, TargetError
from firstsight.models.teacher_head import SharedHead, floats
from firstsight.prompting import Encoded, Prompter
from firstsight.recipe import Recipe
from firstsight.vocabulary import VocabularyAlignment
from phase2_student.data.batch import Batch, Collator, Item
from phase2_student.data.cached import NOT_BY_THE_DUMP, samples_with_targets
from phase2_student.data.contract import check_loss
from phase2_student.data.usable import usable
from phase2_student.loss.targets import PositionTargets, TeacherTargets
from storage.exact import ExactCache
from storage.targets import Turn
from storage.wording import counted

# P answer positions of a sample, N of a batch, D hidden size of the teacher


@dataclass(frozen=True, kw_only=True)
class StateTargets(PositionTargets):
    """The teacher's states, not yet joined with its head."""

    states_ND: Tensor
    """In the stored type; zeros where there is no soft target."""


@dataclass(frozen=True, kw_only=True)
class AnswerRows:
    """Where a sample's targets are, before its states are read."""

    student_ids: tuple[list[int], ...]
    """Each answer in the student's tokens, P in all."""
    rows: NDArray[np.int64]
    """[P] the stored position that speaks for each of the student's; -1: none, only the hard label."""
    hard: NDArray[np.bool_]
    """[P] the answer is ground truth."""


class ExactSource:
    """A `source.TargetSource`: what an exact dump has left.

    Args:
        cache: opened.
        prompter: the student's.
        rows: of the student's head.
        temperature: of the targets, any above 0.
        skip: leave out samples whose answers the student's tokens do not spell (`cache.on_error`).
        progress: show a bar while the answers are compared.
        answers: of the same cache and student, made already.

    Raises:
        AlignmentError: teacher and student share no token.
        CacheError: the token table is damaged, or not there.
    """

    entries: int | None = None
    tail_rank = 0

    def __init__(
        self,
        cache: ExactCache,
        prompter: Prompter,
        *,
        rows: int,
        temperature: float,
        skip: bool = False,
        progress: bool = False,
        answers: AnswerAlignment | None = None,
    ) -> None:
        self.cache = cache
        self.prompter = prompter
        self.rows = rows
        self.temperature = temperature
        self.skip = skip
        self.progress = progress
        if answers is None:
            teacher = TeacherTokens.of_cache(cache.spec, cache.head().tokens())
            answers = AnswerAlignment(teacher, prompter, student_rows=rows)
        self.answers = answers
        self.note = _note(answers.vocabulary)

    def at(self, recipe: Recipe) -> ExactSource:
        """The same cache for a recipe with another loss. RecipeError: a key of the loss that does not go with it."""
        check_loss(recipe, f"{self.cache.location} holds")
        return ExactSource(
            self.cache,
            self.prompter,
            rows=self.rows,
            temperature=recipe.loss.temperature,
            skip=self.skip,
            progress=self.progress,
            answers=self.answers,
        )

    def shared_mask(self) -> NDArray[np.bool_]:
        """Rows of the student's head that the teacher's vocabulary has, too: bool [V]."""
        return self.answers.vocabulary.shared

    def dataset(self, samples: Sequence[Sample]) -> ExactDataset:
        """Samples with their targets; raises what `ExactDataset` does."""
        return ExactDataset(samples, self.prompter, self.cache, self.answers, skip=self.skip, progress=self.progress)

    def reused(self, dataset: ExactDataset) -> ExactDataset:
        """The dataset itself: it has no temperature."""
        return dataset

    def collator(self, blank: Encoded | None = None) -> Collator[StateTargets, StateTargets]:
        """Items of the dataset to batches."""
        return Collator(join=join_states, pad_id=self.prompter.pad_id, blank=blank)

    def identity(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a run on these samples is bound to; the cache may grow, and another student reads other targets from it."""
        return {
            "targets": "exact",
            "targets digest": self.cache.digest_of_samples(keys),
            "alignment": self.answers.vocabulary.digest,
        }

    def facts(self) -> dict[str, Any]:
        """What `run.json` tells of the targets."""
        return {"teacher": None, "cache": self.cache.location, "cache_digest": self.cache.digest}

    def completion(self, device: torch.device) -> Callable[[Batch[StateTargets]], Batch[TeacherTargets]]:
        """What brings a batch to the device, ready for the loss: reads the head's rows of the shared ids."""
        head = SharedHead.of_cache(self.cache, self.answers.vocabulary, device)
        temperature = self.temperature

        def complete(batch: Batch[StateTargets]) -> Batch[TeacherTargets]:
            seen = batch.to(device)
            targets = seen.targets
            return seen.with_targets(
                TeacherTargets(
                    states_ND=targets.states_ND,
                    head=head,
                    temperature=temperature,
                    target_ids_N=targets.target_ids_N,
                    soft_N=targets.soft_N,
                    hard_N=targets.hard_N,
                )
            )

        return complete


def _note(vocabulary: VocabularyAlignment) -> str:
    """Which of the teacher's tokens its distributions are over."""
    tokens, shared = int(vocabulary.teacher_tokens.sum()), int(vocabulary.shared.sum())
    if shared == tokens:
        return "exact targets"
    return (
        f"exact targets over the {shared:,} of the teacher's {tokens:,} tokens that the student has, the others dropped"
    )


def join_states(items: Sequence[Item[StateTargets]]) -> StateTargets:
    """The targets of a batch."""
    parts = [item.targets for item in items]
    return StateTargets(
        states_ND=torch.cat([part.states_ND for part in parts]),
        target_ids_N=torch.cat([part.target_ids_N for part in parts]),
        soft_N=torch.cat([part.soft_N for part in parts]),
        hard_N=torch.cat([part.hard_N for part in parts]),
    )


class ExactDataset(Dataset[Item[StateTargets]]):
    """Samples with the teacher's states.

    Args:
        samples: of one split, rows of equal content included; those that the dump skipped are left out and counted in `skipped`.
        prompter: the student's.
        cache: opened.
        answers: its answers in the student's tokens.
        skip: leave out, and name, samples whose answers the student's tokens do not spell, or that are too long for it; else
            they are an error.
        progress: show a bar while the answers are compared.

    Raises:
        DataError: samples that the cache does not hold: how many, which, and what to run; none that can be learned from; one that
            is too long.
        AlignmentError: an answer that the stored tokens do not spell.
        TargetError: no answer position has a soft target.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        prompter: Prompter,
        cache: ExactCache,
        answers: AnswerAlignment,
        *,
        skip: bool = False,
        progress: bool = False,
    ) -> None:
        self.prompter = prompter
        self.cache = cache
        self.answers = answers
        positions = soft = 0
        rows, skipped = samples_with_targets(samples, cache)

        def judge(key: str, sample: Sample) -> int:
            nonlocal positions, soft
            found = self._answer(key, sample)
            length = prompter.prompt_tokens(sample)[0] + len(found.rows)
            prompter.check_length(sample, length)
            positions += len(found.rows)
            soft += int((found.rows >= 0).sum())
            return length

        known = usable(rows, judge, skip=skip, progress=progress, note=NOT_BY_THE_DUMP)
        self.samples = known.samples
        self.skipped: Sequence[str] = [*skipped, *known.skipped]
        self._lengths = known.lengths
        if rows and not soft:
            raise TargetError(
                f"{cache.location}: no answer position of {positions:,} has a soft target for this student: the two tokenizers "
                "never stand at the same byte, or its tokens are not the teacher's"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item[StateTargets]:
        """The sample; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""
        key, sample = self.samples[index if index >= 0 else ~index]
        cached = self.cache[key].targets
        found = self._answer(key, sample)
        kept = slice(None) if index >= 0 else slice(0)
        rows = found.rows[kept]
        states = np.zeros((len(rows), self.cache.hidden_size), dtype=cached.states.dtype)
        states[rows >= 0] = cached.states[rows[rows >= 0]]
        encoded = self.prompter.encode(sample, found.student_ids[kept])
        return Item(
            name=sample.id,
            encoded=encoded,
            targets=StateTargets(
                target_ids_N=encoded.target_ids,
                soft_N=torch.from_numpy(rows >= 0),
                hard_N=torch.from_numpy(found.hard[kept]),
                states_ND=floats(states, getattr(torch, self.cache.state_dtype)),
            ),
        )

    def lengths(self) -> list[int]:
        """Tokens of every sample, prompt, images and answer; no image is decoded."""
        return self._lengths

    def _answer(self, key: str, sample: Sample) -> AnswerRows:
        """The sample's answers in the student's tokens, without its states."""
        stored = self.cache.rows(key)
        turns = stored.turns or (Turn(len(stored.target_ids), stored.hard),)
        count = self.prompter.turn_count(sample)
        try:
            if len(turns) != count:
                raise AlignmentError(
                    f"it has {counted(count, 'answer')}, the cache holds {len(turns)}; the cache was made with another data.turns: "
                    "dump again"
                )
            parts = []
            start = 0
            # an answer that the teacher gave may stand in for a ground truth that came later
            for number, (turn, own) in enumerate(zip_longest(turns, self.prompter.turn_ids(sample)), start=1):
                teacher_ids = stored.target_ids[start : start + turn.positions].astype(np.int64)
                found = self._turn(teacher_ids, own if turn.hard else None, closing=number == count)
                parts.append((found[0], np.where(found[1] >= 0, found[1] + start, -1), turn.hard))
                start += turn.positions
        except AlignmentError as error:
            raise AlignmentError(f"{sample.place}: sample {sample.id!r}: {error}") from None
        ids, rows, hard = zip(*parts, strict=True)
        return AnswerRows(student_ids=ids, rows=np.concatenate(rows), hard=np.repeat(hard, list(map(len, rows))))

    def _turn(
        self, teacher_ids: NDArray[np.int64], own: list[int] | None, *, closing: bool
    ) -> tuple[list[int], NDArray[np.int64]]:
        """The student's tokens of one answer, and the teacher's position for each; `own`: of the ground truth."""
        if not self.answers.vocabulary.teacher_tokens[teacher_ids].all():
            raise AlignmentError("the cache holds an id that is no token of its teacher's")
        if own is None:
            own = self.answers.student_ids(teacher_ids, closing=closing).tolist()
        return own, self.answers.rows(teacher_ids, np.array(own, dtype=np.int64), closing=closing)
