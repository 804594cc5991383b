"""One pass of the frozen teacher over the data: plan -> forward -> top-k -> write.

job = prepare_dump(recipe)     # data, tokenizers, spec: everything that can be refused is refused here
summary = dump(job)            # loads the teacher only if something is left to do

Three stages overlap: samples are read and encoded ahead of the device, the device computes, finished targets are committed.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from firstsight.console import Heartbeat
from firstsight.errors import TargetError
from firstsight.models.loading import load_teacher
from firstsight.models.quantization import check_stored
from phase1_teacher.forward.exact_states import head_content
from phase1_teacher.forward.fidelity import Comparison
from phase1_teacher.forward.gradient import GradientReport, WatchedPosition, gradient_report
from phase1_teacher.forward.prefetch import Prefetch
from phase1_teacher.forward.tail_basis import NO_STATES, agreed_basis
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.forward.unit_batches import unit_batches
from phase1_teacher.planning.job import DumpJob, prepare_dump
from phase1_teacher.workers import Shard, work_order
from phase1_teacher.writing.commit_thread import CommitThread
from storage.format.v2.layout import ExactLayout

__all__ = ["DumpSummary", "dump", "prepare_dump"]

_AHEAD = 4  # batches that are encoded ahead of the device
_LAST_COMMIT = 5.0  # seconds that a running commit gets when the dump is told to stop


@dataclass(frozen=True, kw_only=True)
class DumpSummary:
    """What a dump did."""

    samples: int = 0
    """Samples with targets."""
    skipped: tuple[str, ...] = ()
    """The reason for each sample that this dump skipped."""
    positions: int = 0
    units: int = 0
    seconds: float = 0.0
    """Time from the first batch to the end; loading the teacher is not included."""
    idle_share: float = 0.0
    """Share of the time in which the device was idle, 0 to 1."""
    split_budget: int | None = None
    """Tokens per forward pass if the recipe's `teacher.batch_tokens` did not fit into memory; else None."""
    peak_bytes: int | None = None
    """Largest device memory in use during this dump; None on a CPU."""
    gradient: GradientReport | None = None
    """How a top_k cache changes the student's gradient; None: not asked for, or reported by another worker."""


def dump(
    job: DumpJob,
    *,
    shard: Shard | None = None,
    model: Any = None,
    check_quantization: bool = False,
    progress: bool = True,
) -> DumpSummary:
    """Compute and commit every unit that is not committed.

    Args:
        job: from `prepare_dump`.
        shard: where this worker begins; it then takes every other unit that is not committed.
        model: the loaded teacher; None: load it.
        check_quantization: load the unquantised teacher as well and compare on the first batch of every unit.
        progress: show a bar.

    Raises:
        ModelError: the teacher's weights cannot be loaded, or with `check_quantization` are stored quantised alone.
        TargetError: the teacher's logits are not finite (the sample is named, its unit is not committed), or a sample does
            not fit into the device's memory. This and the next two only if the recipe does not skip such samples.
        DataError: a sample cannot be encoded.
        AlignmentError: the student's tokens cannot spell an answer of the teacher.
        CacheError: the store refused a write, as on a full disk.
    """
    unquantised = job.recipe.teacher.model_copy(update={"quantization": "none"})
    if check_quantization:
        check_stored(job.pair.directory, unquantised)
    pending = work_order(job.pending, shard or Shard())
    if not pending:
        return DumpSummary()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()  # what this process did before does not count
    reference = None
    if check_quantization:
        reference = load_teacher(job.pair.directory, unquantised)
    forward = TeacherForward(job, model, reference)
    layout = job.writer.version.layout
    if isinstance(layout, ExactLayout):
        head = head_content(forward.model.get_output_embeddings(), job.pair.answers.teacher, layout)
        job.writer.write_head(head, first=(shard or Shard()).index)
    elif layout.tail_rank:
        forward.head.tail = agreed_basis(job.writer, partial(_first_states, job, forward), forward.head)
    begin = time.perf_counter()
    commits = CommitThread(job)
    batches = Prefetch(unit_batches(job, pending, is_done=job.writer.is_committed), _AHEAD)
    total, done = sum(map(len, pending)), 0
    beats = Heartbeat(total, unit="sample", label="teacher")
    try:
        with tqdm(total=total, desc="teacher", unit=" sample", disable=not progress) as bar:
            for batch in beats.waiting(batches):
                beats.beat(done)
                bar.update(len(batch.samples))
                done += len(batch.samples)
                if job.writer.is_committed(batch.unit.name):  # by another worker, since the batch was prepared
                    continue
                for result in forward.run(batch):
                    commits.add(batch, result)
                commits.finish(batch)
        commits.close()
    except BaseException:
        commits.abandon(_LAST_COMMIT)
        raise
    finally:
        batches.close()
    seconds, idle_share = time.perf_counter() - begin, forward.clock.idle_share()
    peak_bytes = torch.cuda.max_memory_allocated() if forward.clock.cuda else None
    budget = forward.budget if forward.budget < job.recipe.teacher.batch_tokens else None
    watched, compared = forward.watched, forward.compared
    del forward, reference, model  # frees the teacher's memory for the student's base
    return DumpSummary(
        samples=commits.samples,
        skipped=tuple(commits.skipped),
        positions=commits.positions,
        units=commits.units,
        seconds=seconds,
        idle_share=idle_share,
        split_budget=budget,
        peak_bytes=peak_bytes,
        gradient=_gradient(job, watched, compared) if (shard or Shard()).index == 0 else None,
    )


def _first_states(job: DumpJob, forward: TeacherForward) -> torch.Tensor:
    """[N, D] the states of the plan's first unit that has any, in planned order, whatever the batches and workers are.

    Raises:
        TargetError: no unit has any.
    """
    for unit in job.writer.units():
        found: dict[str, torch.Tensor] = {}
        for batch in unit_batches(job, [unit], is_done=lambda _: False):
            found |= forward.states(batch)
        states = [found[key] for key in unit.keys if key in found and len(found[key])]
        if states:
            return torch.cat(states)
    raise TargetError(NO_STATES)


def _gradient(job: DumpJob, watched: list[WatchedPosition], compared: Comparison) -> GradientReport | None:
    """The report on the student's gradient; the first worker makes it."""
    if job.student is None or not watched:
        return None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return gradient_report(
        job.recipe, job.student, watched, top_k=compared.layout.top_k, temperatures=compared.temperatures
    )
