"""Targets from the teacher in memory: its whole distribution, batch by batch, and no cache.

    source = TeacherSource(recipe, load_pair(recipe))
    data = source.dataset(samples)           # in the order, and with the lengths, of a cached dataset
    complete = source.completion(device)     # loads the teacher
    batch = complete(source.collator()(items))

The reference for what a cache keeps, and a feature where the teacher is small. Same trainer, order, seeds and loss weights as
on a cache; only the targets differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError, TargetError
from firstsight.families.self_check import check_logits, checked_columns
from firstsight.identity import cache_spec, model_name
from firstsight.models.loading import backbone_states, load_teacher
from firstsight.models.teacher_head import TeacherHead
from firstsight.pair import Pair
from firstsight.prompting import Encoded, answer_index, collate
from firstsight.recipe import Recipe
from phase2_student.data.batch import Batch, Collator, Item
from phase2_student.data.contract import check_loss
from phase2_student.data.usable import usable
from phase2_student.loss.targets import PositionTargets, TeacherTargets
from storage.wording import counted

# P answer positions of a sample, N of a batch, M of them with soft targets, D hidden size of the teacher


@dataclass(frozen=True, kw_only=True)
class TeacherView:
    """One sample as the teacher's inputs, and which of its answer positions are the student's."""

    encoded: Encoded
    rows: Tensor
    """int64 [P]: the teacher's answer position for each of the student's; -1: no soft target."""


@dataclass(frozen=True, kw_only=True)
class TeacherInputs(PositionTargets):
    """What the teacher must see before it gives targets: its inputs, and M of its answer positions."""

    inputs: dict[str, Tensor]
    """Padded, as `prompting.collate` makes them."""
    rows_M: Tensor
    """int64, rows of the positions in the padded inputs."""
    columns_M: Tensor
    """int64."""


class TeacherSource:
    """A `source.TargetSource`: the teacher itself.

    Args:
        recipe: of the run.
        pair: of teacher and student.
        progress: show a bar while samples are checked.
    """

    note = "the teacher in memory"
    entries: int | None = None
    tail_rank = 0

    def __init__(self, recipe: Recipe, pair: Pair, *, progress: bool = False) -> None:
        self.recipe = recipe
        self.pair = pair
        self.progress = progress
        self.prompter = pair.student
        self.skip = recipe.cache.on_error == "skip"

    def at(self, recipe: Recipe) -> TeacherSource:
        """The same teacher for a recipe with another loss. RecipeError: a key of the loss that does not go with it."""
        check_loss(recipe, "the teacher in memory gives")
        return TeacherSource(recipe, self.pair, progress=self.progress)

    def shared_mask(self) -> NDArray[np.bool_]:
        """Rows of the student's head that the teacher's vocabulary has, too: bool [V]."""
        return self.pair.alignment.shared

    def dataset(self, samples: Sequence[Sample]) -> OnlineDataset:
        """Samples with the teacher's inputs; raises what `OnlineDataset` does."""
        return OnlineDataset(samples, self.pair, skip=self.skip, progress=self.progress)

    def reused(self, dataset: OnlineDataset) -> OnlineDataset:
        """The dataset itself: it has no temperature."""
        return dataset

    def collator(self, blank: Encoded | None = None) -> Collator[TeacherView, TeacherInputs]:
        """Items of the dataset to batches."""
        return Collator(join=partial(join_inputs, self.pair.teacher.pad_id), pad_id=self.prompter.pad_id, blank=blank)

    def identity(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a run on these targets is bound to: what a cache of the teacher would be."""
        del keys  # the teacher answers for all of them
        pair = self.pair
        spec = cache_spec(
            self.recipe,
            teacher_directory=pair.directory,
            teacher=pair.teacher,
            student=pair.student,
            alignment=pair.alignment,
        )
        del spec["teacher"]["batch_tokens"]  # the teacher's batch is the student's
        return {
            "targets": "online",
            "turns": self.prompter.turns,
            **{f"teacher.{name}": value for name, value in spec["teacher"].items()},
            "alignment": spec["alignment"]["digest"],
        }

    def facts(self) -> dict[str, Any]:
        """What `run.json` tells of the targets."""
        return {"teacher": model_name(self.recipe, self.recipe.teacher), "cache": None, "cache_digest": None}

    def completion(self, device: torch.device) -> Callable[[Batch[TeacherInputs]], Batch[TeacherTargets]]:
        """What brings a batch to the device, ready for the loss: loads the teacher, whose states then replace its inputs."""
        section = self.recipe.teacher
        if section.device_map is None:
            section = section.model_copy(update={"device_map": str(device)})
        model = load_teacher(self.pair.directory, section)
        head = model.get_output_embeddings()
        teacher_head = TeacherHead(head.weight, getattr(head, "bias", None), self.pair.alignment)
        teacher = OnlineTeacher(model, teacher_head, self.recipe.loss.temperature, skip=self.skip)
        return lambda batch: teacher.complete(batch.to(device))


class OnlineTeacher:
    """The frozen teacher beside a student.

    Args:
        model: of transformers, with a head.
        head: its head on the shared ids.
        temperature: of the targets that it gives.
        skip: a sample whose states are not finite gets no weight, and is named; else it is an error.
    """

    def __init__(self, model: Any, head: TeacherHead, temperature: float, *, skip: bool = False) -> None:
        self.model = model
        self.head = head
        self.temperature = temperature
        self.skip = skip
        self._checked = False
        self._named: set[str] = set()

    def complete(self, batch: Batch[TeacherInputs]) -> Batch[TeacherTargets]:
        """The batch with the teacher's states in the place of its inputs.

        Raises:
            TargetError: states that are not finite, with the names of the samples, unless these are skipped.
        """
        seen = batch.targets
        states_ND = self.states(seen)
        finite_N = states_ND.isfinite().all(dim=1)
        soft_N, hard_N = seen.soft_N, seen.hard_N
        if not finite_N.all():
            rows_N = batch.answer_rows.to(finite_N.device)
            rows = torch.unique(rows_N[~finite_N])
            self._leave_out([batch.names[row] for row in rows.tolist()])
            kept_N = ~torch.isin(rows_N, rows)
            states_ND = states_ND.masked_fill(~kept_N[:, None], 0.0)
            soft_N, hard_N = soft_N & kept_N.to(soft_N.device), hard_N & kept_N.to(hard_N.device)
        targets = TeacherTargets(
            states_ND=states_ND,
            head=self.head,
            temperature=self.temperature,
            target_ids_N=seen.target_ids_N,
            soft_N=soft_N,
            hard_N=hard_N,
        )
        return batch.with_targets(targets)

    def _leave_out(self, names: Sequence[str]) -> None:
        """Name samples that get no weight, each once; TargetError where none is skipped."""
        said = "the teacher's hidden states are not finite"
        if not self.skip:
            raise TargetError(f"{said} on {', '.join(names)}; try teacher.dtype: bfloat16, or set cache.on_error: skip")
        for name in names:
            if name not in self._named:
                self._named.add(name)
                print(f"sample {name!r} is left out (cache.on_error: skip): {said}", file=sys.stderr, flush=True)

    @torch.no_grad()
    def states(self, seen: TeacherInputs) -> Tensor:
        """[N, D] hidden states of the teacher at the student's answer positions; zeros where there is no soft target."""
        width = self.head.head_VD.shape[1]
        states_ND = torch.zeros((len(seen.soft_N), width), device=self.head.device)
        if len(seen.rows_M):
            moved = {name: tensor.to(self.model.device) for name, tensor in seen.inputs.items()}
            if not self._checked:
                self._self_check(moved)
            found_MD = backbone_states(self.model, moved, seen.rows_M, seen.columns_M)
            states_ND[seen.soft_N.to(states_ND.device)] = found_MD.to(states_ND)
        return states_ND

    def _self_check(self, inputs: dict[str, Tensor]) -> None:
        """Our logits of the first sample of a batch against the stock model's, once. Raises ModelError."""
        columns = checked_columns(int(inputs["attention_mask"][0].sum()))
        states_nD = backbone_states(self.model, inputs, torch.zeros_like(columns), columns)
        self._checked = check_logits(self.model, inputs, columns, self.head.logits(states_nD), role="teacher")


class OnlineDataset(Dataset[Item[TeacherView]]):
    """Samples with the teacher's inputs in place of stored targets.

    Args:
        samples: of one data file; each with an answer.
        pair: of teacher and student.
        skip: leave out, and name, samples that one of the models cannot take; else they are an error.
        progress: show a bar while they are checked: every picture is made an input once.

    Raises:
        DataError: samples without an answer; one that a model cannot take; none that can be taken.
    """

    def __init__(self, samples: Sequence[Sample], pair: Pair, *, skip: bool = False, progress: bool = False) -> None:
        unanswered = [sample.place for sample in samples if sample.answer is None]
        if unanswered:
            raise DataError(
                f"{counted(len(unanswered), 'sample has', 'samples have')} no answer ({', '.join(unanswered[:5])}): online training "
                "cannot let the teacher answer; add answers, or dump with cache.generate_missing: true and train on the cache"
            )
        self.pair = pair
        self._seen: set[tuple[str, ...]] = set()

        def judge(_key: str, sample: Sample) -> int:
            pair.check(sample)
            self._check_pictures(sample)
            return pair.student.sample_tokens(sample)

        rows = [(sample.key, sample) for sample in samples]
        found = usable(rows, judge, skip=skip, progress=progress, label="checking samples")
        self.samples = found.samples
        self.skipped: Sequence[str] = found.skipped
        self._lengths = found.lengths

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item[TeacherView]:
        """The sample; below zero the filler `~index`, its prompt without an answer: it fills a batch and has no weight."""
        _, sample = self.samples[index if index >= 0 else ~index]
        answers: list[list[int]] | None = None if index >= 0 else []
        student = self.pair.student.encode(sample, answers)
        teacher = student if self.pair.same_inputs else self.pair.teacher.encode(sample, answers)
        try:
            rows = self.pair.answer_rows(sample, teacher.turn_ids, student.turn_ids)
        except AlignmentError as error:
            raise AlignmentError(f"{sample.place}: sample {sample.id!r}: {error}") from None
        view = TeacherView(encoded=teacher, rows=torch.from_numpy(rows))
        return Item(name=sample.id, encoded=student, targets=view)

    def _check_pictures(self, sample: Sample) -> None:
        """Raise DataError for pictures that cannot be read, or that a model's processor refuses; equal ones are made once."""
        marks = sample.image_marks
        if marks and marks not in self._seen:
            for prompter in (self.pair.student,) if self.pair.same_inputs else (self.pair.teacher, self.pair.student):
                prompter.opened_pictures(sample)
            self._seen.add(marks)

    def lengths(self) -> list[int]:
        """Tokens of every sample for the student, prompt, images and answer; no image is decoded."""
        return self._lengths


def join_inputs(pad_id: int, items: Sequence[Item[TeacherView]]) -> TeacherInputs:
    """The teacher's part of a batch.

    Args:
        pad_id: fills the teacher's `input_ids` on the right.
        items: of the batch.
    """
    teacher = [item.targets.encoded for item in items]
    rows, columns = answer_index(teacher)
    offsets = np.cumsum([0, *(each.positions for each in teacher)]).tolist()
    views = [item.targets.rows for item in items]
    chosen = torch.cat([each[each >= 0] + offset for each, offset in zip(views, offsets, strict=False)])
    soft = torch.cat([each >= 0 for each in views])
    return TeacherInputs(
        target_ids_N=torch.cat([item.encoded.target_ids for item in items]),
        soft_N=soft,
        hard_N=torch.ones_like(soft),
        inputs=collate(teacher, pad_id),
        rows_M=rows[chosen],
        columns_M=columns[chosen],
    )
