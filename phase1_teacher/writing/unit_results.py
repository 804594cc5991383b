"""Results of a unit, turned from the device's output into stored targets and sums: what the writer thread computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstsight.errors import TargetError
from phase1_teacher.forward.exact_states import ExactStates, bits
from phase1_teacher.forward.fidelity import SHAPE_KL, Comparison, comparison, fidelity_sums
from phase1_teacher.forward.soft_targets import TopKTargets
from phase1_teacher.forward.teacher import AnsweredSample, ForwardResult
from phase1_teacher.planning.job import DumpJob
from phase1_teacher.planning.retry import BY_TEACHER
from storage.format.base import EXACT
from storage.plan import PlannedUnit
from storage.targets import ExactSample, ExactTargets, SampleTargets, ShapedTargets, StoredSample, Targets
from storage.writer import UnitWriter

# N soft positions of a result, P answer positions of a sample


class UnitResults(ABC):
    """Targets, skipped samples and sums of one unit.

    Args:
        unit: the planned unit.
        compared: what the fidelity report measures.
        skip: leave out samples with logits that are not finite; else they stop the dump.
    """

    def __init__(self, unit: PlannedUnit, compared: Comparison, *, skip: bool) -> None:
        self.unit = unit
        self.skipped: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        """Samples skipped because of what the teacher computed, and why."""
        self.sums: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        self._compared = compared
        self._skip = skip
        self._targets: dict[str, StoredSample] = {}
        self._measured: list[tuple[Targets, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, result: ForwardResult) -> None:
        """Add the samples of one forward pass; waits for its copies from the device.

        Raises:
            TargetError: the teacher's logits are not finite; the message names the sample.
        """
        if result.ready is not None:
            result.ready.synchronize()
        finite = result.block.finite_N
        kept = np.ones(len(finite), dtype=np.bool_)
        done: list[StoredSample] = []
        start = 0
        for sample in result.samples:
            rows = slice(start, start + int(sample.soft.sum()))
            start = rows.stop
            if not bool(finite[rows].all()):
                reason = f"{sample.name}: the teacher's logits are not finite"
                if not self._skip:
                    raise TargetError(f"{reason}; try teacher.dtype: bfloat16, or set cache.on_error: skip")
                self.refused[sample.key] = reason
                kept[rows] = False
                continue
            self._targets[sample.key] = self._stored(result.block, rows, sample)
            done.append(self._targets[sample.key])
        self._count(result, kept, done)
        self._measure(result, kept)
        if result.split_budget is not None:
            self.notes["batch_tokens"] = result.split_budget

    def fill(self, out: UnitWriter) -> None:
        """Hand everything to the unit's writer, in the planned order."""
        self.skipped |= self.refused
        if self.refused:
            self.notes[BY_TEACHER] = sorted(self.refused)
        for key in self.unit.keys:
            if key in self.skipped:
                out.skip(key, self.skipped[key])
            else:
                out.append(self._targets[key])
        if self._measured:
            layout = self._compared.layout
            exact, normalisers, negentropies, shape_kls = zip(*self._measured, strict=True)
            whole = Targets.concatenate(exact, layout.widths)
            moments = np.concatenate(normalisers), np.concatenate(negentropies)
            self._add(fidelity_sums(whole, *moments, layout, self._compared.temperatures))
            for T, kl in zip(self._compared.temperatures, np.concatenate(shape_kls).T, strict=False):
                self._add({f"{SHAPE_KL}{T:g}": float(kl.astype(np.float64).sum())})
        out.statistics.update(self.sums)
        out.notes.update(self.notes)

    @abstractmethod
    def _stored(self, block: Any, rows: slice, sample: AnsweredSample) -> StoredSample:
        """A sample in the form that the cache stores; `rows` are its soft positions in the block."""

    @abstractmethod
    def _compared_targets(self, block: Any, rows: NDArray[np.int64]) -> tuple[TopKTargets, NDArray[np.int64]]:
        """The top-k targets that hold the measured positions, and their rows in them; `rows` are those in the block."""

    def _sums_of(self, block: Any, chosen: torch.Tensor) -> dict[str, float]:  # noqa: ARG002
        """More sums over some positions of a block."""
        return {}

    def _measure(self, result: ForwardResult, kept: NDArray[np.bool_]) -> None:
        rows = result.measured_m.numpy()
        good = kept[rows]
        if good.any():
            student_ids = np.concatenate([sample.student_ids[sample.soft] for sample in result.samples])
            block, places = self._compared_targets(result.block, rows)
            part = _targets(block, torch.from_numpy(places[good]), student_ids[rows[good]])
            moments = (block.log_normaliser_mt, block.negentropy_mt, block.shape_kl_mt)
            self._measured.append((part, *(moment.numpy()[good] for moment in moments)))

    def _count(self, result: ForwardResult, kept: NDArray[np.bool_], done: Sequence[StoredSample]) -> None:
        added: dict[str, float] = {
            "samples": len(done),
            "positions": sum(len(sample.targets) for sample in done),
            "soft_positions": int(kept.sum()),
            "tokens": result.tokens,
            "padded_tokens": result.padded_tokens,
            "images_used": result.images_used,
            "images_encoded": result.images_encoded,
            "answers_generated": result.generated,
            **result.check_sums,
        }
        self._add(added | self._sums_of(result.block, torch.from_numpy(kept)))

    def _add(self, added: dict[str, float]) -> None:
        for name, value in added.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class TopKResults(UnitResults):
    """Results of kind top_k."""

    def _stored(self, block: TopKTargets, rows: slice, sample: AnsweredSample) -> SampleTargets:
        dense = _targets(block, rows, sample.student_ids[sample.soft])
        if block.coefficients_Nr.shape[1]:
            dense = ShapedTargets(**dense.arrays(), tail_coefficients=block.coefficients_Nr[rows].numpy())
        targets = dense.spread(sample.soft, sample.student_ids.astype(np.uint32))
        return SampleTargets(targets=targets, **_turns(sample))

    def _compared_targets(self, block: TopKTargets, rows: NDArray[np.int64]) -> tuple[TopKTargets, NDArray[np.int64]]:
        return block, rows

    def _sums_of(self, block: TopKTargets, chosen: torch.Tensor) -> dict[str, float]:
        added = {"dropped_mass": float(block.dropped_N[chosen].double().sum())}
        for j, T in enumerate(self._compared.layout.temperatures):
            stored = (block.logprobs_NK[chosen] / T).logsumexp(dim=1)
            tail_mass = torch.sigmoid(block.tail_NJ[chosen, j] - stored).double()
            added[f"tail_mass_T{T:g}"] = float(tail_mass.sum())
            added[f"stored_mass_T{T:g}"] = float((1 - tail_mass).sum())
        return added


class ExactResults(UnitResults):
    """Results of kind exact: every answer position is soft."""

    def _stored(self, block: ExactStates, rows: slice, sample: AnsweredSample) -> ExactSample:
        targets = ExactTargets(target_ids=sample.student_ids.astype(np.uint32), states=bits(block.states_ND[rows]))
        return ExactSample(targets=targets, **_turns(sample))

    def _compared_targets(self, block: ExactStates, rows: NDArray[np.int64]) -> tuple[TopKTargets, NDArray[np.int64]]:
        return block.measured, np.arange(len(rows))


def unit_results(job: DumpJob, unit: PlannedUnit) -> UnitResults:
    """An empty collection for a unit of the job's cache."""
    version = job.writer.version
    kind = ExactResults if version.kind == EXACT else TopKResults
    compared = comparison(version, job.pair.alignment, job.recipe.loss.temperature)
    return kind(unit, compared, skip=job.recipe.cache.on_error == "skip")


def _turns(sample: AnsweredSample) -> dict[str, Any]:
    """What is stored of a sample besides its targets."""
    turns = sample.turns if len(sample.turns) > 1 else ()
    return {"key": sample.key, "hard": all(turn.hard for turn in sample.turns), "turns": turns}


def _targets(block: TopKTargets, rows: Any, student_ids: NDArray[np.int64]) -> Targets:
    """The targets of some soft positions."""
    return Targets(
        ids=block.ids_NK[rows].numpy().astype(np.uint32),
        logprobs=block.logprobs_NK[rows].numpy(),
        tail=block.tail_NJ[rows].numpy(),
        target_ids=student_ids.astype(np.uint32),
        target_logprobs=block.target_logprobs_N[rows].numpy(),
        soft=np.ones(len(student_ids), dtype=np.bool_),
    )
