"""Results of a unit, as they come from the device, made into targets and sums: what the writer thread computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstsight.errors import TargetError
from phase1_teacher.forward.fidelity import fidelity_sums
from phase1_teacher.forward.soft_targets import TopKTargets
from phase1_teacher.forward.teacher import ForwardResult
from phase1_teacher.planning.retry import BY_TEACHER
from storage.format.layout import Layout
from storage.plan import PlannedUnit
from storage.targets import SampleTargets, Targets
from storage.writer import UnitWriter

# N soft positions of a result, P answer positions of a sample


class UnitResults:
    """Targets, skipped samples and sums of one unit.

    Args:
        unit: planned.
        layout: of the cache.
        skip: samples with logits that are not finite are left out; else they stop the dump.
    """

    def __init__(self, unit: PlannedUnit, layout: Layout, *, skip: bool) -> None:
        self.unit = unit
        self.skipped: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        """Skipped for what the teacher computed, and why."""
        self.sums: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        self._layout = layout
        self._skip = skip
        self._targets: dict[str, SampleTargets] = {}
        self._measured: list[tuple[Targets, NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, result: ForwardResult) -> None:
        """One forward pass's samples; waits for its copies from the device.

        Raises:
            TargetError: the teacher's logits are not finite; names the sample.
        """
        if result.ready is not None:
            result.ready.synchronize()
        block = result.block
        kept = np.ones(len(block.ids_NK), dtype=np.bool_)
        done: list[Targets] = []
        start = 0
        for sample in result.samples:
            rows = slice(start, start + int(sample.soft.sum()))
            start = rows.stop
            if not bool(block.finite_N[rows].all()):
                reason = f"{sample.name}: the teacher's logits are not finite"
                if not self._skip:
                    raise TargetError(f"{reason}; try teacher.dtype: bfloat16, or set cache.on_error: skip")
                self.refused[sample.key] = reason
                kept[rows] = False
                continue
            student_ids = sample.student_ids
            dense = _targets(block, rows, student_ids[sample.soft])
            targets = dense.spread(sample.soft, student_ids.astype(np.uint32))
            self._targets[sample.key] = SampleTargets(key=sample.key, hard=sample.hard, targets=targets)
            done.append(targets)
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
            exact, normalisers, negentropies = zip(*self._measured, strict=True)
            whole = Targets.concatenate(exact, self._layout.widths)
            self._add(fidelity_sums(whole, np.concatenate(normalisers), np.concatenate(negentropies), self._layout))
        out.statistics.update(self.sums)
        out.notes.update(self.notes)

    def _measure(self, result: ForwardResult, kept: NDArray[np.bool_]) -> None:
        block, rows = result.block, result.measured_m.numpy()
        good = kept[rows]
        if good.any():
            student_ids = np.concatenate([sample.student_ids[sample.soft] for sample in result.samples])
            part = _targets(block, torch.from_numpy(rows[good]), student_ids[rows[good]])
            self._measured.append((part, block.log_normaliser_mt.numpy()[good], block.negentropy_mt.numpy()[good]))

    def _count(self, result: ForwardResult, kept: NDArray[np.bool_], done: Sequence[Targets]) -> None:
        block, chosen = result.block, torch.from_numpy(kept)
        added: dict[str, float] = {
            "samples": len(done),
            "positions": sum(len(targets) for targets in done),
            "soft_positions": int(kept.sum()),
            "dropped_mass": float(block.dropped_N[chosen].double().sum()),
            "tokens": result.tokens,
            "padded_tokens": result.padded_tokens,
            "images_used": result.images_used,
            "images_encoded": result.images_encoded,
            "answers_generated": result.generated,
            **result.check_sums,
        }
        for j, T in enumerate(self._layout.temperatures):
            stored = (block.logprobs_NK[chosen] / T).logsumexp(dim=1)
            tail_mass = torch.sigmoid(block.tail_NJ[chosen, j] - stored).double()
            added[f"tail_mass_T{T:g}"] = float(tail_mass.sum())
            added[f"stored_mass_T{T:g}"] = float((1 - tail_mass).sum())
        self._add(added)

    def _add(self, added: dict[str, float]) -> None:
        for name, value in added.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


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
