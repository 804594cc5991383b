"""Part (c): the production dump, from image files to committed units, against the bare forward pass of its teacher.

    bare    backbone and float32 head at the answer positions of the same batches, encoded before the clock starts
    dump    `phase1_teacher.dump` on a new cache; one unit, so encoding and commit at its end overlap with nothing. Its self-check,
            which every dump runs once whatever its size, has a column of its own and is in none of the others
    tail    a dump of top_k targets with a tail that has a shape; its directions, computed once from the first unit's states, have two
            columns of their own: the teacher's pass over that unit, and the directions
    exact   a dump of exact targets: the states go to the host; writing the head, once before the first batch, has its own column
    pictures alone    the dump's own reading and preparing of samples, without a teacher

Estimated for an H100: weights 9.4 GB (int8) and 16.6 GB (bf16), float32 head 2.2 GB; a pass of 65,536 tokens some 15 GB above that,
with int8's int32 products 20 GB. A sample of 1,300 tokens and an image of 4,888 patches is 28 TFLOP: 10 to 14 samples a second
in bf16, perhaps half of that in int8. 270 samples of each teacher, bare passes included: 25 and 40 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch

import phase1_teacher.dump as dumping
from benchmarks.gpu.board import Figures, free_memory
from benchmarks.gpu.setting import Setting
from benchmarks.timed_calls import timed_calls
from firstsight.models.loading import backbone_states, to_device
from firstsight.prompting import answer_index
from phase1_teacher.forward.prefetch import Prefetch
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.forward.unit_batches import UnitBatch, unit_batches
from phase1_teacher.planning.job import DumpJob
from storage.writer import CacheWriter, create_cache

TARGETS = {"top_k": (), "tail": ("cache.tail_rank={rank}",), "exact": ("cache.targets=exact",)}
"""For each row name, what the recipe changes."""
KINDS = {"int8": "int8", "bf16": "none"}
"""For each row name, the recipe's name for it."""
_HEAD_SECONDS = 10.0
"""Estimate for writing an exact cache's head, 1.1 GB with fsync and sha256, or computing a tail's directions in float64."""


def row_name(kind: str, tokens: int, targets: str = "top_k") -> str:
    """The name of a dump's row."""
    return f"{kind} teacher, passes of {tokens:,} tokens{'' if targets == 'top_k' else f', {targets} targets'}"


def run(setting: Setting) -> None:
    """The rows of this part."""
    board, sizes = setting.board, setting.sizes
    jobs = {
        targets: dumping.prepare_dump(
            setting.recipe(f"cache.path=all-{targets}.zarr", *_changes(setting, targets)), progress=False
        )
        for targets in TARGETS
    }
    longest = max(len(each.input_ids) for each in setting.encoded(4))
    dumps = [(tokens, passes * max(1, tokens // longest)) for tokens, passes in sizes.dumps]
    pictures = _part(jobs["top_k"], setting, "top_k", "int8", *dumps[0])
    board.measure("dump", "pictures alone", about=5, work=partial(_pictures, pictures))
    for kind in KINDS:
        setting.keep()  # so that the peaks are those of one teacher
        board.measure("dump", f"{kind} teacher made", about=8, work=partial(_make, setting, kind))
        pace = 0.0  # seconds per sample of the previous dump
        for tokens, samples in dumps:
            part, is_main = _part(jobs["top_k"], setting, "top_k", kind, tokens, samples), tokens == dumps[0][0]
            found = board.measure(
                "dump",
                row_name(kind, tokens),
                about=2 + 1.2 * samples * pace if pace else 20.0,
                work=partial(_dump, setting, part, kind, with_bare=is_main),
            )
            pace = 1 / found["samples/s"] if found else pace
        if kind == "int8":  # the reference recipe's
            tokens, samples = dumps[0]
            for targets in ("exact", "tail"):
                part = _part(jobs[targets], setting, targets, kind, tokens, samples)
                board.measure(
                    "dump",
                    row_name(kind, tokens, targets),
                    about=_HEAD_SECONDS + 2 + 1.2 * samples * pace,
                    work=partial(_dump_beside, setting, part, kind, board.find("dump", row_name(kind, tokens))),
                )
    setting.keep()


def _changes(setting: Setting, targets: str) -> tuple[str, ...]:
    return tuple(each.format(rank=setting.sizes.tail_rank) for each in TARGETS[targets])


def _part(job: DumpJob, setting: Setting, targets: str, kind: str, tokens: int, samples: int) -> DumpJob:
    """A job of its own for the first samples of a job, with another token budget and a new cache."""
    recipe = setting.recipe(
        f"teacher.quantization={KINDS[kind]}",
        f"teacher.batch_tokens={tokens}",
        f"cache.path={kind}-{tokens}-{targets}.zarr",
        *_changes(setting, targets),
    )
    teacher = job.writer.spec["teacher"] | {"quantization": KINDS[kind], "batch_tokens": tokens}
    writer = create_cache(recipe.cache_location, {**job.writer.spec, "teacher": teacher})
    planned = writer.plan(islice(job.samples.planned(), samples), unit_positions=recipe.cache.unit_positions)
    return replace(job, recipe=recipe, writer=writer, planned=planned)


def _make(setting: Setting, kind: str) -> Figures:
    begin = time.perf_counter()
    setting.model(f"teacher-{kind}")
    setting.synchronize()
    figures: Figures = {"s": time.perf_counter() - begin}
    if setting.on_gpu:
        figures["GB in memory"] = torch.cuda.memory_allocated() / 1e9
    return figures


def _batches(job: DumpJob) -> list[UnitBatch]:
    return list(unit_batches(job, job.pending, is_done=lambda _: False))


def _pictures(job: DumpJob) -> Figures:
    begin = time.perf_counter()
    count = sum(len(batch.samples) for batch in _batches(job))
    seconds = time.perf_counter() - begin
    return {"samples": count, "s": seconds, "samples/s": count / seconds}


def _dump(setting: Setting, job: DumpJob, kind: str, *, with_bare: bool) -> Figures:
    """Measure a dump; if asked for, first the bare passes over the same batches, which also warm up."""
    model = setting.model(f"teacher-{kind}")
    bare = _bare(setting, job, model) if with_bare else 0.0
    free_memory()
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    waits: list[float] = []

    class Waiting(Prefetch[Any]):
        """Records how long the loop waits for each batch."""

        def __iter__(self) -> Iterator[Any]:
            source = super().__iter__()
            while True:
                begin = time.perf_counter()
                try:
                    item = next(source)
                except StopIteration:
                    return
                waits.append(time.perf_counter() - begin)
                yield item

    begin = time.perf_counter()
    with (
        patch.object(dumping, "Prefetch", Waiting),
        timed_calls(TeacherForward, "_self_check", setting.synchronize) as checks,
        timed_calls(CacheWriter, "write_head") as heads,
        timed_calls(dumping, "agreed_basis", setting.synchronize) as bases,
        timed_calls(dumping, "_first_states", setting.synchronize) as first_units,
    ):
        summary = dumping.dump(job, model=model, progress=False)
    setting.synchronize()
    seconds = (
        time.perf_counter() - begin - (sum(bases) if bases else sum(checks) + sum(heads))
    )  # bases begin with the check
    figures: Figures = {
        "samples": summary.samples,
        "s": seconds,
        "samples/s": summary.samples / seconds,
        "positions/s": summary.positions / seconds,
        "idle share": summary.idle_share,
        "waited for the first batch, s": waits[0],
        "for the others, s": sum(waits[1:]),
        "self-check, s": sum(checks),
    }
    if summary.split_budget is not None:
        figures["memory took passes of"] = summary.split_budget
    if summary.peak_bytes is not None:
        figures["peak GB"] = summary.peak_bytes / 1e9
    if with_bare:
        figures |= {"bare, s": bare, "dump / bare": seconds / bare}
    if bases:
        figures |= {"first unit, s": sum(first_units) - sum(checks), "directions, s": sum(bases) - sum(first_units)}
    elif heads:
        figures["head, s"] = sum(heads)
    return figures


def _dump_beside(setting: Setting, job: DumpJob, kind: str, beside: Figures | None) -> Figures:
    """Measure a dump of other targets, and its time divided by that of the top_k dump of the same samples."""
    figures = _dump(setting, job, kind, with_bare=False)
    return figures if beside is None else figures | {"x top_k": figures["s"] / beside["s"]}


@torch.inference_mode()
def _bare(setting: Setting, job: DumpJob, model: Any) -> float:
    """Seconds of backbone and head over all batches, after an untimed pass over the first."""
    batches = _batches(job)
    forward = TeacherForward(job, model)
    _pass(forward, batches[0])
    setting.synchronize()
    begin = time.perf_counter()
    for batch in batches:
        _pass(forward, batch)
    setting.synchronize()
    return time.perf_counter() - begin


def _pass(forward: TeacherForward, batch: UnitBatch) -> None:
    rows, columns = (
        to_device(index, forward.head.device) for index in answer_index([each.encoded for each in batch.samples])
    )
    states_ND = backbone_states(forward.model, forward.vision.inputs(batch.samples), rows, columns)
    head = forward.head
    for start in range(0, len(states_ND), head.chunk):
        head.logits(states_ND[start : start + head.chunk])
    forward.vision.forget()
