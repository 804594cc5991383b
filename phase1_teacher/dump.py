"""One pass of the frozen teacher over the data: plan -> forward -> top-k -> write.

job = prepare(recipe)          # data, tokenizers, spec: everything that can be refused is refused here
summary = dump(job)            # loads the teacher only if something is left to do
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from firstsight.errors import DataError, TargetError
from firstsight.identity import cache_spec
from firstsight.models import backbone_states, head_rows, load_config, load_processor, load_teacher, resolve_directory
from firstsight.prompting import Encoded, Prompter, answer_index, collate
from firstsight.recipe import Recipe
from firstsight.samples import Sample, load_samples
from firstsight.vocabulary import Token, VocabularyAlignment, align_answer, align_vocabularies, token_table
from phase1_teacher.batches import batch_by_tokens
from phase1_teacher.top_k import TargetBlock, TargetMaker
from storage.plan import PlannedSample, PlannedUnit
from storage.targets import SampleTargets, Targets
from storage.writer import CacheWriter, UnitWriter, create_cache


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dump that has passed every check which needs no weights."""

    recipe: Recipe
    directory: Path
    """Of the teacher."""
    samples: dict[str, Sample]
    """By key, training then validation."""
    teacher: Prompter
    student: Prompter
    teacher_tokens: dict[int, Token]
    student_tokens: dict[int, Token]
    alignment: VocabularyAlignment
    writer: CacheWriter
    planned: int
    """Samples that this job added to the plan."""

    @property
    def pending(self) -> list[PlannedUnit]:
        """Units of this data that no one has committed."""
        return self.writer.pending()


@dataclass(frozen=True, kw_only=True)
class DumpSummary:
    """What a dump did."""

    samples: int
    positions: int
    units: int
    seconds: float


def prepare(recipe: Recipe, *, progress: bool = True) -> Job:
    """Check data, models and cache, and plan what is missing.

    Raises:
        FirstSightError: bad data, models that are not there, vocabularies that do not fit.
        CacheError: the cache was made with another spec (with the differences).
    """
    rows = [
        *load_samples(recipe.file("train"), recipe.data_root),
        *load_samples(recipe.file("validation"), recipe.data_root),
    ]
    for sample in rows:
        if sample.answer is None:
            raise DataError(f"{sample.place}: sample {sample.id!r} has no answer; add an assistant message")
    directory = resolve_directory(recipe, recipe.teacher)
    student_directory = resolve_directory(recipe, recipe.student, weights=False)
    options: dict[str, Any] = {"max_length": recipe.data.max_length, "system_prompt": recipe.data.system_prompt}
    teacher = Prompter(load_processor(directory, recipe.teacher), **options)
    student = Prompter(load_processor(student_directory, recipe.student), **options)
    teacher_tokens, student_tokens = token_table(teacher.tokenizer), token_table(student.tokenizer)
    alignment = align_vocabularies(
        teacher_tokens,
        student_tokens,
        teacher_rows=head_rows(load_config(directory, recipe.teacher)),
        student_rows=head_rows(load_config(student_directory, recipe.student)),
    )
    if recipe.cache.top_k > alignment.shared.sum():
        raise DataError(
            f"cache.top_k: {recipe.cache.top_k} is more than the {alignment.shared.sum()} tokens that teacher and student "
            "share; lower it"
        )
    spec = cache_spec(recipe, teacher_directory=directory, teacher=teacher, student=student, alignment=alignment)
    writer = create_cache(recipe.cache_location, spec)
    samples = {
        sample.key: sample
        for sample in tqdm(rows, desc="reading samples", unit="sample", disable=not progress, leave=False)
    }
    planned = writer.plan(
        (PlannedSample(key=key, positions=len(student.answer_ids(s.answer or ""))) for key, s in samples.items()),
        unit_positions=recipe.cache.unit_positions,
    )
    return Job(
        recipe=recipe,
        directory=directory,
        samples=samples,
        teacher=teacher,
        student=student,
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens,
        alignment=alignment,
        writer=writer,
        planned=planned,
    )


def dump(job: Job, *, progress: bool = True) -> DumpSummary:
    """Compute and commit every unit that is not committed.

    Raises:
        TargetError: the teacher's logits are not finite; the sample is named, its unit is not committed.
    """
    begin = time.perf_counter()
    pending = job.pending
    samples = positions = units = 0
    if pending:
        forward = TeacherForward(job)
        with tqdm(
            total=sum(len(unit.keys) for unit in pending), desc="teacher", unit="sample", disable=not progress
        ) as bar:
            for unit in pending:
                if job.writer.is_committed(unit.name):
                    bar.update(len(unit.keys))
                    continue
                with job.writer.unit(unit) as out:
                    count = _dump_unit(job, forward, unit, out, bar)
                samples += len(unit.keys)
                positions += count
                units += 1
    return DumpSummary(samples=samples, positions=positions, units=units, seconds=time.perf_counter() - begin)


class TeacherForward:
    """The loaded teacher: batches of samples in, soft targets out."""

    def __init__(self, job: Job) -> None:
        self.model = load_teacher(job.directory, job.recipe.teacher)
        head = self.model.get_output_embeddings()
        self.make_targets = TargetMaker(
            head.weight,
            getattr(head, "bias", None),
            job.alignment,
            top_k=job.recipe.cache.top_k,
            temperatures=job.recipe.cache.temperatures,
        )
        tokenizer = job.teacher.tokenizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Encoded], rows: Sequence[torch.Tensor], target_ids: torch.Tensor) -> TargetBlock:
        """Soft targets of the positions `rows` (indices into each sample's answer positions) of a batch."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in collate(batch, self.pad_id).items()}
        row_index, column_index = answer_index(batch)
        offsets = np.cumsum([0, *(sample.positions for sample in batch)])
        chosen = torch.cat([picked + int(start) for picked, start in zip(rows, offsets[:-1], strict=True)])
        states = backbone_states(self.model, inputs, row_index[chosen], column_index[chosen])
        return self.make_targets(states, target_ids)


def _dump_unit(job: Job, forward: TeacherForward, unit: PlannedUnit, out: UnitWriter, bar: Any) -> int:
    """All samples of a unit through the teacher; returns the answer positions."""
    skip = job.recipe.cache.on_error == "skip"
    skipped: dict[str, str] = {}
    for key in unit.keys:
        if key not in job.samples:
            reason = f"unit {unit.name}: planned sample {key} is not in the data any more"
            if not skip:
                raise DataError(f"{reason}; put it back, set cache.on_error: skip, or use another cache.path")
            skipped[key] = reason
    keys = [key for key in unit.keys if key not in skipped]
    lengths = [_length(job, job.samples[key]) for key in keys]
    results: dict[str, Targets] = {}
    sums: dict[str, float] = {}
    for indices in batch_by_tokens(lengths, job.recipe.teacher.batch_tokens):
        batch: dict[str, Encoded] = {}
        for key in (keys[index] for index in indices):
            try:
                batch[key] = job.teacher.encode(job.samples[key])
            except DataError as error:
                if not skip:
                    raise
                skipped[key] = str(error)
        for key, targets in _dump_batch(job, forward, batch, sums).items():
            if isinstance(targets, Targets):
                results[key] = targets
            elif skip:
                skipped[key] = targets
            else:
                raise TargetError(f"{targets}; try teacher.dtype: bfloat16, or set cache.on_error: skip")
        bar.update(len(indices))
    for key in unit.keys:
        if key in skipped:
            out.skip(key, skipped[key])
        else:
            out.append(SampleTargets(key=key, hard=True, targets=results[key]))
    out.statistics.update(sums)
    return int(sums.get("positions", 0))


def _length(job: Job, sample: Sample) -> int:
    return job.teacher.prompt_tokens(sample)[0] + len(job.teacher.answer_ids(sample.answer or ""))


def _dump_batch(
    job: Job, forward: TeacherForward, batch: dict[str, Encoded], sums: dict[str, float]
) -> dict[str, Targets | str]:
    """Targets of each sample of a batch by key, or the reason why there are none."""
    if not batch:
        return {}
    student_ids, teacher_rows, softs = [], [], []
    for key, encoded in batch.items():
        ids = np.array(job.student.answer_ids(job.samples[key].answer or ""), dtype=np.int64)
        row = _teacher_rows(job, encoded, ids)
        soft = (row >= 0) & job.alignment.shared[ids]
        student_ids.append(ids)
        teacher_rows.append(torch.from_numpy(row[soft]))
        softs.append(soft)
    soft_ids = torch.from_numpy(np.concatenate([ids[soft] for ids, soft in zip(student_ids, softs, strict=True)]))
    block = forward(list(batch.values()), teacher_rows, soft_ids)
    targets: dict[str, Targets | str] = {}
    kept = torch.ones(len(block.ids_NK), dtype=torch.bool)
    start = 0
    for key, ids, soft in zip(batch, student_ids, softs, strict=True):
        rows = slice(start, start + int(soft.sum()))
        start = rows.stop
        if bool(block.finite_N[rows].all()):
            targets[key] = _scatter(block, rows, ids, soft)
        else:
            sample = job.samples[key]
            targets[key] = f"{sample.place}: sample {sample.id!r}: the teacher's logits are not finite"
            kept[rows] = False
    done = [value for value in targets.values() if isinstance(value, Targets)]
    _count(sums, block, kept.to(block.ids_NK.device), done, job.recipe.cache.temperatures)
    return targets


def _teacher_rows(job: Job, encoded: Encoded, student_ids: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    teacher_ids = encoded.target_ids.numpy()
    if len(teacher_ids) == len(student_ids) and (job.alignment.student_of_teacher[teacher_ids] == student_ids).all():
        return np.arange(len(student_ids))
    return align_answer(teacher_ids.tolist(), student_ids.tolist(), job.teacher_tokens, job.student_tokens)


def _scatter(block: TargetBlock, rows: slice, ids: np.ndarray[Any, Any], soft: np.ndarray[Any, Any]) -> Targets:
    """One sample's targets; positions without soft targets hold zeros."""

    def spread(values: torch.Tensor, dtype: Any) -> Any:
        part = values[rows].cpu().numpy()
        full = np.zeros((len(soft), *part.shape[1:]), dtype=dtype)
        full[soft] = part
        return full

    return Targets(
        ids=spread(block.ids_NK, np.uint32),
        logprobs=spread(block.logprobs_NK, np.float32),
        tail=spread(block.tail_NJ, np.float32),
        target_ids=ids.astype(np.uint32),
        target_logprobs=spread(block.target_logprobs_N, np.float32),
        soft=soft,
    )


def _count(
    sums: dict[str, float],
    block: TargetBlock,
    kept: torch.Tensor,
    done: Sequence[Targets],
    temperatures: Sequence[float],
) -> None:
    """Add a batch to a unit's sums: the mass that is stored and the mass of the tail, at each node temperature."""
    added: dict[str, float] = {
        "samples": len(done),
        "positions": sum(len(targets) for targets in done),
        "soft_positions": int(kept.sum()),
        "dropped_mass": float(block.dropped_N[kept].double().sum()),
        "target_nats": float(-block.target_logprobs_N[kept].double().sum()),
    }
    for j, T in enumerate(temperatures):
        stored = (block.logprobs_NK[kept] / T).logsumexp(dim=1)
        tail_mass = torch.sigmoid(block.tail_NJ[kept, j] - stored).double()
        added[f"tail_mass_T{T:g}"] = float(tail_mass.sum())
        added[f"stored_mass_T{T:g}"] = float((1 - tail_mass).sum())
    for name, value in added.items():
        sums[name] = sums.get(name, 0.0) + value
