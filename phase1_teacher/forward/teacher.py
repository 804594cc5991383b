"""The loaded teacher: batches of a unit in, soft targets of their answer positions out, on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstsight.errors import AlignmentError, FirstSightError, TargetError
from firstsight.families.self_check import check_logits, checked_columns
from firstsight.models.loading import backbone_states, load_teacher, to_device
from firstsight.prompting import answer_index, collate
from phase1_teacher.forward.answers import TeacherAnswers
from phase1_teacher.forward.device_clock import DeviceClock
from phase1_teacher.forward.exact_states import ExactStates, exact_states
from phase1_teacher.forward.fidelity import comparison
from phase1_teacher.forward.gradient import POSITIONS, WatchedPosition
from phase1_teacher.forward.soft_targets import TopKHead, TopKTargets
from phase1_teacher.forward.unit_batches import EncodedSample, UnitBatch
from phase1_teacher.forward.vision import VisionFeatures
from phase1_teacher.planning.batches import batch_by_tokens
from phase1_teacher.planning.job import DumpJob
from storage.format.v2.layout import ExactLayout
from storage.targets import Turn

_PassT = TypeVar("_PassT")

# N soft answer positions of a forward pass, m sampled ones, S shared ids, P answer positions of a sample

FIDELITY_POSITIONS = 64
"""Positions of a unit that the fidelity report is measured on, about; never more than one in 16."""


@dataclass(frozen=True, kw_only=True)
class AnsweredSample:
    """A sample whose answer tokens are known."""

    key: str
    name: str
    """Place and id, for messages."""
    turns: tuple[Turn, ...]
    """Its answers, in order; ground truth is hard."""
    student_ids: NDArray[np.int64]
    """[P], one answer after the other; of exact targets the teacher's own."""
    soft: NDArray[np.bool_]
    """[P]: positions for which the teacher has a row."""


@dataclass(frozen=True, kw_only=True)
class ForwardResult:
    """Targets of the samples of one forward pass, on their way to the host."""

    samples: list[AnsweredSample]
    block: TopKTargets | ExactStates
    """All soft positions, sample by sample."""
    measured_m: Tensor
    """int64: soft positions that the fidelity report is measured on."""
    check_sums: dict[str, float] = field(default_factory=dict)
    """Agreement with the unquantised teacher, where that was asked for."""
    split_budget: int | None = None
    """Tokens per forward pass where memory took less than the recipe's `teacher.batch_tokens`."""
    generated: int = 0
    """Answers by the teacher."""
    tokens: int = 0
    padded_tokens: int = 0
    images_used: int = 0
    images_encoded: int = 0
    ready: Any = None
    """CUDA event after which the host copies are there; None on a CPU."""


class TeacherForward:
    """Runs the teacher over batches; remembers how large a batch the memory takes.

    Args:
        job: from `prepare_dump`.
        model: the loaded teacher; None: load it.
        reference: the teacher without quantisation, to compare with on the first batch of every unit.
    """

    def __init__(self, job: DumpJob, model: Any = None, reference: Any = None) -> None:
        self.job = job
        self.reference = reference
        self.model = load_teacher(job.pair.directory, job.recipe.teacher) if model is None else model
        head = self.model.get_output_embeddings()
        self.compared = comparison(job.writer.version, job.pair.alignment, job.recipe.loss.temperature)
        self.head = TopKHead(
            head.weight,
            getattr(head, "bias", None),
            job.pair.alignment,
            top_k=self.compared.layout.top_k,
            temperatures=self.compared.layout.temperatures,
            reported=self.compared.temperatures,
        )
        self.vision = VisionFeatures(self.model, job.pair.teacher)
        self.answers = TeacherAnswers(self.model, job)
        self.skip = job.recipe.cache.on_error == "skip"
        self.budget = job.recipe.teacher.batch_tokens
        self.clock = DeviceClock(self.model.device)
        self.watched: list[WatchedPosition] = []
        """Positions that the student's gradient is measured on afterwards."""
        self._soft_seen = 0
        self._checked = False

    def run(self, batch: UnitBatch) -> Iterator[ForwardResult]:
        """Targets of a batch, in one forward pass or, where memory forces it, in several.

        What cannot be done for a sample is put into `batch.refused` where the recipe skips such samples.

        Raises:
            TargetError: memory does not take even one sample, or the teacher cannot answer it.
            AlignmentError: an answer of the teacher that the student's tokens do not spell.
        """
        if batch.samples and not self._checked:
            self._self_check(batch.samples)
        if batch.first:
            self._soft_seen = 0
            self.vision.forget()
        check = batch.first and self.reference is not None

        def forward(samples: Sequence[EncodedSample], refused: dict[str, str]) -> ForwardResult | None:
            return self._forward(samples, refused, check=check)

        for result in self._passes(batch, forward):
            check = False
            yield result
        self.vision.forget(batch.later_images)

    def states(self, batch: UnitBatch) -> dict[str, Tensor]:
        """Key -> [P, D] the finite states of the soft positions of each sample of a batch. TargetError as `run`."""
        if batch.samples and not self._checked:
            self._self_check(batch.samples)
        found: dict[str, Tensor] = {}
        for answered, states_ND in self._passes(batch, self._soft_states):
            parts = torch.split(states_ND, [int(sample.soft.sum()) for sample in answered])
            for sample, part in zip(answered, parts, strict=True):
                found[sample.key] = part[part.isfinite().all(dim=1)]
        self.vision.forget(batch.later_images)
        return found

    def _passes(
        self, batch: UnitBatch, forward: Callable[[Sequence[EncodedSample], dict[str, str]], _PassT | None]
    ) -> Iterator[_PassT]:
        """What some function gives for a batch, called once or, where memory forces it, on parts."""
        waiting = [batch.samples] if self.budget == self.job.recipe.teacher.batch_tokens else self._split(batch.samples)
        while waiting:
            samples = waiting.pop(0)
            if not samples:
                continue
            try:
                with self.clock.busy():
                    result = forward(samples, batch.refused)
            except torch.OutOfMemoryError as error:
                if len(samples) == 1:
                    self._forget()
                    self._refuse(samples[0], _too_large(samples[0], error), batch.refused)
                    continue
                self._halve(samples)
                rest = [sample for each in [samples, *waiting] for sample in each]
                waiting = self._split(rest)
                continue
            if result is None:
                continue
            yield result

    @torch.inference_mode()
    def _self_check(self, samples: Sequence[EncodedSample]) -> None:
        """Our logits of one sample against the stock model's, once. Raises ModelError."""
        sample = min(samples, key=lambda each: (not each.images, len(each.encoded.input_ids)))
        columns = checked_columns(len(sample.encoded.input_ids))
        vision = VisionFeatures(self.model, self.job.pair.teacher)
        try:
            states_nD = backbone_states(self.model, vision.inputs([sample]), torch.zeros_like(columns), columns)
            inputs = collate([sample.encoded], self.vision.pad_id)
            on_device = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            self._checked = check_logits(self.model, on_device, columns, self.head.logits(states_nD), role="teacher")
        except torch.OutOfMemoryError:  # what becomes of the sample its forward pass decides
            self._forget()
            print(
                f"{sample.name}: too large for the self-check of the teacher, which waits for the next batch",
                file=sys.stderr,
            )

    def _refuse(self, sample: EncodedSample, error: FirstSightError, refused: dict[str, str]) -> None:
        """Skip a sample, or raise what is wrong with it."""
        if not self.skip:
            raise error
        refused[sample.key] = str(error)

    def _halve(self, samples: Sequence[EncodedSample]) -> None:
        longest = max(len(sample.encoded.input_ids) for sample in samples)
        self.budget = max(1, min(self.budget, longest * len(samples)) // 2)
        self._forget()

    def _forget(self) -> None:
        """Leave the device's memory to what comes."""
        self.vision.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _split(self, samples: Sequence[EncodedSample]) -> list[list[EncodedSample]]:
        lengths = [len(sample.encoded.input_ids) for sample in samples]
        return [[samples[index] for index in part] for part in batch_by_tokens(lengths, self.budget)]

    @torch.inference_mode()
    def _forward(
        self, samples: Sequence[EncodedSample], refused: dict[str, str], *, check: bool
    ) -> ForwardResult | None:
        """Targets of some samples; None where none of them can have any."""
        encoded_before, generated_before = self.vision.encoded, self.answers.generated
        found = self._soft_places(samples, refused)
        if found is None:
            return None
        samples, answered, teacher_rows, rows, columns = found
        encoded = [sample.encoded for sample in samples]
        target_ids = torch.from_numpy(np.concatenate([each.student_ids[each.soft] for each in answered]))
        target_ids = to_device(target_ids, self.head.device)
        states_ND = self._states(samples, rows, columns)
        measured = measured_rows(self._soft_seen, len(rows), self.job.recipe.cache.unit_positions)
        block = self._block(states_ND, target_ids, measured)
        watched = self._to_watch(samples, teacher_rows, states_ND, measured) if self.job.student is not None else []
        budget = self.job.recipe.teacher.batch_tokens
        result = ForwardResult(
            samples=answered,
            block=block.to_host(),
            measured_m=measured,
            check_sums=self._check(samples, rows, columns, states_ND) if check else {},
            split_budget=self.budget if self.budget < budget else None,
            generated=self.answers.generated - generated_before,
            tokens=sum(len(each.input_ids) for each in encoded),
            padded_tokens=len(encoded) * max(len(each.input_ids) for each in encoded),
            images_used=sum(len(sample.images) for sample in samples),
            images_encoded=self.vision.encoded - encoded_before,
            ready=self.clock.event(),
        )
        self._soft_seen += len(rows)  # from here on nothing runs out of memory: a pass that did is done again in parts
        self.watched += watched
        return result

    @torch.inference_mode()
    def _soft_states(
        self, samples: Sequence[EncodedSample], refused: dict[str, str]
    ) -> tuple[list[AnsweredSample], Tensor] | None:
        """Samples and the states of their soft positions, sample by sample; None where none of them can have any."""
        found = self._soft_places(samples, refused)
        if found is None:
            return None
        samples, answered, _, rows, columns = found
        return answered, self._states(samples, rows, columns)

    def _soft_places(
        self, samples: Sequence[EncodedSample], refused: dict[str, str]
    ) -> tuple[list[EncodedSample], list[AnsweredSample], list[NDArray[np.int64]], Tensor, Tensor] | None:
        """Samples with their answers, the teacher's answer positions of the soft ones, and rows and columns of these in the inputs.

        None where none of the samples can have targets.
        """
        done: list[tuple[EncodedSample, AnsweredSample, NDArray[np.int64]]] = []
        for sample in self.answers.complete(samples, lambda sample, error: self._refuse(sample, error, refused)):
            try:
                done.append((sample, *self._answered(sample)))
            except AlignmentError as error:
                self._refuse(sample, error, refused)
        if not done:
            return None
        samples, answered, teacher_rows = map(list, zip(*done, strict=True))
        encoded = [sample.encoded for sample in samples]
        rows, columns = answer_index(encoded)
        offsets = np.cumsum([0, *(each.positions for each in encoded)])
        chosen = torch.from_numpy(np.concatenate([p + o for p, o in zip(teacher_rows, offsets[:-1], strict=True)]))
        return samples, answered, teacher_rows, rows[chosen], columns[chosen]

    def _block(self, states_ND: Tensor, target_ids_N: Tensor, measured_m: Tensor) -> TopKTargets | ExactStates:
        layout = self.job.writer.version.layout
        if isinstance(layout, ExactLayout):
            return exact_states(states_ND, target_ids_N, measured_m, self.head, layout)
        return self.head(states_ND, target_ids_N, measured_m)

    def _to_watch(
        self,
        samples: Sequence[EncodedSample],
        teacher_rows: Sequence[NDArray[np.int64]],
        states_ND: Tensor,
        measured_m: Tensor,
    ) -> list[WatchedPosition]:
        """The first measured positions of the dump, with their logits, as far as there are too few yet."""
        owner_N = np.repeat(np.arange(len(samples)), [len(rows) for rows in teacher_rows])
        places_N = np.concatenate(teacher_rows)
        found = []
        for row in measured_m.tolist()[: POSITIONS - len(self.watched)]:
            sample = samples[owner_N[row]]
            logits_V = self.head.logits(states_ND[row : row + 1])[0].cpu()
            if logits_V.isfinite().all():
                found.append(
                    WatchedPosition(
                        sample=sample.sample,
                        teacher_ids=sample.encoded.turn_ids,
                        place=int(places_N[row]),
                        logits_V=logits_V,
                    )
                )
        return found

    def _check(
        self, samples: Sequence[EncodedSample], rows: Tensor, columns: Tensor, states_ND: Tensor
    ) -> dict[str, float]:
        """Agreement with the unquantised teacher at T = 1, as sums over these positions.

        KL(unquantised || quantised) in nats, and how often both rank the same token first.
        """
        reference_ND = self._states(samples, rows, columns, of_reference=True)
        kl_nats, same_top = [], []  # read at the end: the host waits once
        chunk = self.head.chunk
        for start in range(0, len(states_ND), chunk):
            # the head is not quantised: both go through the same one
            log_p = self.head.log_probabilities(reference_ND[start : start + chunk])
            log_q = self.head.log_probabilities(states_ND[start : start + chunk])
            kl_nats.append((log_p.exp() * (log_p - log_q)).sum(dim=1).double().sum())
            same_top.append((log_p.argmax(dim=1) == log_q.argmax(dim=1)).sum())
        return {
            "check_positions": float(len(states_ND)),
            "check_kl": sum(map(float, kl_nats), 0.0),
            "check_same_top": float(sum(map(int, same_top))),
        }

    def _states(
        self, samples: Sequence[EncodedSample], rows: Tensor, columns: Tensor, *, of_reference: bool = False
    ) -> Tensor:
        """[N, D] hidden states of the teacher, or of the unquantised one, at the given places; no logits are made."""
        # indices first: after the backbone their copies would wait for it
        rows, columns = (to_device(index, self.head.device) for index in (rows, columns))
        if of_reference:
            model = self.reference
            encoded = collate([sample.encoded for sample in samples], self.vision.pad_id)
            inputs = {name: to_device(tensor, model.device) for name, tensor in encoded.items()}
        else:
            model, inputs = self.model, self.vision.inputs(samples)
        return backbone_states(model, inputs, rows, columns)

    def _answered(self, sample: EncodedSample) -> tuple[AnsweredSample, NDArray[np.int64]]:
        """The sample's tokens in the student's vocabulary, and the teacher's answer position of each soft one."""
        pair = self.job.pair
        teacher = sample.encoded.turn_ids
        try:
            student = pair.student_turns(sample.sample, teacher)
            rows = pair.answer_rows(sample.sample, teacher, student)
        except AlignmentError as error:
            raise AlignmentError(f"{sample.name}: {error}") from None
        own = len(student) - (sample.sample.answer is None)
        turns = tuple(Turn(len(ids), number < own) for number, ids in enumerate(student))
        soft = rows >= 0
        student_ids = np.array([index for ids in student for index in ids], dtype=np.int64)
        answered = AnsweredSample(key=sample.key, name=sample.name, turns=turns, student_ids=student_ids, soft=soft)
        return answered, rows[soft]


def measured_rows(seen: int, count: int, unit_positions: int) -> Tensor:
    """Evenly spaced soft positions of a unit, whatever batches it is cut into.

    Args:
        seen: soft positions of the unit in earlier batches.
        count: of this one.
        unit_positions: of the recipe.
    """
    stride = max(16, unit_positions // FIDELITY_POSITIONS)
    return torch.tensor(range(-seen % stride, count, stride), dtype=torch.int64)


def _too_large(sample: EncodedSample, error: Exception) -> TargetError:
    return TargetError(
        f"{sample.name} alone does not fit into the device's memory ({str(error).splitlines()[0]}); lower "
        "teacher.max_pixels, or take a larger GPU"
    )
