"""What a dump will cost, before any model is loaded: samples, tokens, bytes, GPU-hours; and how much the cache holds already."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from firstsight.data.check import check_data, refusal
from firstsight.data.sample import Sample
from firstsight.errors import DataError
from firstsight.families.parts import HeadShape, head_shape
from firstsight.identity import with_turns_of_cache
from firstsight.models.gpus import GPUS, ModelSize, bytes_text, count_text, model_size
from firstsight.models.loading import load_config
from firstsight.pair import Pair, clock_note
from firstsight.recipe import Recipe
from phase1_teacher.planning.cost import UTILIZATION, TeacherWork, device_bytes, forward_flops
from phase1_teacher.planning.job import (
    answer_positions,
    check_adopted_turns,
    check_answered,
    dump_pair,
)
from storage.errors import CacheMissing, WrongTargets
from storage.exact import ExactCache, open_any_cache
from storage.format.head_table import exact_sizes, tail_sizes
from storage.maintenance.status import cache_status
from storage.reader import Cache
from storage.wording import counted

SCALES = (1, 10, 1_000, 1_000_000)

_ENTRY_BYTES = 1.45  # ids and values of one stored entry: measured at k = 64 (docs/log.md, storage)
_POSITION_BYTES = 11.0  # tails, target and the unit's documents, from the same measurement
_STATE_BYTES = {"bfloat16": 1.39, "float16": 1.5, "float32": 3.4}  # a number of an exact state (docs/log.md, storage)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What there is to dump."""

    rows: int
    """Rows of both splits, rows of equal content included."""
    samples: int
    """Rows of different content: what the teacher sees and the cache holds."""
    unreadable: int
    """Samples that cannot be used; `cache.on_error: skip` leaves them out."""
    answers: int
    """Answers of the samples, the teacher's own included."""
    missing_answers: int
    """Samples that the teacher answers itself; counted with the maximum length of an answer."""
    positions: int
    prompt_tokens: int
    """Tokens of the prompts, without image tokens."""
    image_tokens: int
    longest: int
    """Tokens of the longest sample."""
    too_long: int
    """Samples longer than `data.max_length` or the positions of a model: the dump refuses or skips them."""
    first_too_long: tuple[str, ...]
    """Places of the first samples that are too long."""
    images: int
    """Number of different image files."""
    work: TeacherWork
    present: int
    """Samples that the cache holds already."""
    notes: tuple[str, ...]
    """Notes about the rows, one line each."""


@dataclass(frozen=True, kw_only=True)
class DumpPlan:
    """What there is to dump, and what it costs."""

    demand: Demand
    size: ModelSize
    bytes_per_position: float
    measured: bool
    """Whether `bytes_per_position` was measured in this cache; else it comes from other data."""
    head_bytes: int
    """Bytes of the head of an exact cache, or of the directions of a tail; stored once per cache."""
    longest_teacher: int
    """Most tokens of a sample that the teacher takes."""
    longest_student: int
    device_bytes: float
    utilization: float

    def hours(self, scale: int) -> dict[str, float]:
        """GPU-hours on each GPU for `scale` times the data."""
        total = forward_flops(self.size, self.demand.work) * scale
        return {gpu.name: total / (gpu.teraflops * 1e12 * self.utilization) / 3600 for gpu in GPUS}

    def bytes(self, scale: int) -> float:
        """Bytes of the cache for `scale` times the data."""
        return self.bytes_per_position * self.demand.positions * scale + self.head_bytes


def plan_dump(recipe: Recipe, *, utilization: float | None = None, progress: bool = True) -> DumpPlan:
    """Read all rows and image headers. Reads no weights and decodes no image.

    Args:
        recipe: only the configurations and tokenizers of its models are read.
        utilization: assumed share of a GPU's peak that the dump reaches; None: `UTILIZATION` of the teacher's quantisation.
        progress: show a bar.

    Raises:
        FirstSightError: bad data or models.
    """
    stated, recipe = recipe, with_turns_of_cache(recipe)
    pair = dump_pair(recipe, weights=False)
    try:
        cache: Cache | ExactCache | None = open_any_cache(recipe.cache_location)
        measured = cache_status(recipe.cache_location).bytes_per_position
    except CacheMissing:
        cache = measured = None
    if cache is not None and cache.kind != recipe.cache.targets:
        raise WrongTargets(
            f"{recipe.cache_location} holds {cache.kind} targets, but cache.targets is {recipe.cache.targets}; use another "
            f"cache.path, or set cache.targets: {cache.kind}"
        )
    config = load_config(pair.directory, recipe.teacher)
    size = model_size(config)
    per_position = _bytes_per_position(recipe, size) if measured is None else measured
    return DumpPlan(
        demand=_demand(recipe, pair, cache, recipe is not stated, progress),
        size=size,
        bytes_per_position=per_position,
        measured=measured is not None,
        longest_teacher=pair.teacher.longest,
        longest_student=pair.student.longest,
        head_bytes=_head_bytes(recipe, pair, head_shape(config)),
        device_bytes=device_bytes(size, recipe.teacher),
        utilization=UTILIZATION[recipe.teacher.quantization] if utilization is None else utilization,
    )


def _bytes_per_position(recipe: Recipe, size: ModelSize) -> float:
    """Estimated bytes per position of a cache that does not exist yet."""
    if recipe.cache.targets == "exact":
        return _STATE_BYTES[recipe.teacher.dtype] * size.hidden + _POSITION_BYTES
    return _ENTRY_BYTES * recipe.cache.top_k + _POSITION_BYTES + (recipe.cache.tail_rank or 0)


def _head_bytes(recipe: Recipe, pair: Pair, head: HeadShape) -> int:
    """Bytes of a cache's head, the token table of an exact one included; 0 if it has none."""
    if recipe.cache.targets == "top_k":
        rank = recipe.cache.tail_rank
        return tail_sizes(len(pair.alignment.teacher_of_student), rank, head.hidden_size).nbytes() if rank else 0
    tokens = sum(len(content) for content, _ in pair.answers.teacher.table.values())
    return exact_sizes(head.rows, head.hidden_size, recipe.teacher.dtype, head.bias).nbytes() + tokens


def _demand(recipe: Recipe, pair: Pair, cache: Cache | ExactCache | None, adopted: bool, progress: bool) -> Demand:
    counts = dict.fromkeys((f.name for f in fields(Demand) if f.name not in ("work", "notes", "first_too_long")), 0)
    per_token = pair.teacher.family.patches_per_token(pair.teacher.processor)
    work = dict.fromkeys((f.name for f in fields(TeacherWork)), 0)
    seen: set[int] = set()
    too_long: list[str] = []
    refused: list[DataError] = []

    def judge(_split: str, sample: Sample, new: bool) -> int:
        if not new:
            return 0
        try:
            if adopted:
                check_adopted_turns(sample, recipe.cache_location)
            check_answered(recipe, sample)
        except DataError as error:
            refused.append(error)
            raise
        pair.check_spelling(sample)  # lengths are counted below
        positions = answer_positions(recipe, pair.student, sample)
        length, image_tokens = pair.teacher.prompt_tokens(sample)
        total = length + positions
        other = total if pair.same_inputs else pair.student.prompt_tokens(sample)[0] + positions
        counts["samples"] += 1
        counts["answers"] += pair.teacher.turn_count(sample)
        counts["missing_answers"] += sample.answer is None
        counts["positions"] += positions
        counts["prompt_tokens"] += length - image_tokens
        counts["image_tokens"] += image_tokens
        counts["longest"] = max(counts["longest"], total)
        if total > pair.teacher.longest or other > pair.student.longest:
            counts["too_long"] += 1
            too_long.extend([sample.place] if len(too_long) < 5 else [])
        counts["present"] += cache is not None and sample.key in cache
        first_seen = {hash(image) for image in sample.images} - seen
        seen.update(first_seen)
        counts["images"] += len(first_seen)
        work["patches"] += image_tokens * per_token * len(first_seen) // max(1, len(sample.images))
        work["tokens"] += total
        work["squared_tokens"] += total * total
        work["positions"] += positions
        return total

    report = check_data(recipe.sources(), judge=judge, turns=recipe.data.turns, images=False, progress=progress)
    none_left = not counts["samples"]
    if report.row_faults or refused or (report.lost and (recipe.cache.on_error == "stop" or none_left)):
        raise refusal(report)
    counts["rows"] = sum(report.summary.rows.values())
    counts["unreadable"] = report.fault_count
    clock = clock_note(pair.teacher, pair.student)
    notes = (*report.summary.notes(), *([clock] if clock else []))
    return Demand(**counts, work=TeacherWork(**work), first_too_long=tuple(too_long), notes=notes)


def plan_text(plan: DumpPlan, recipe: Recipe) -> str:
    """The plan as lines for the terminal."""
    demand, size = plan.demand, plan.size
    origin = "measured in this cache" if plan.measured else "measured on other data; the first units will tell"
    targets = f"k = {recipe.cache.top_k}"
    if recipe.cache.tail_rank:
        targets += f", tail_rank = {recipe.cache.tail_rank}; {bytes_text(plan.head_bytes)} of that are the tail's directions, stored once"
    elif plan.head_bytes:
        targets = f"exact targets; {bytes_text(plan.head_bytes)} of that are the teacher's head, stored once"
    lines = [
        f"Samples     {demand.samples:,}, {counted(demand.images, 'image file')}; {counted(demand.present, 'is in', 'are in')} "
        f"{recipe.cache_location} already ({demand.present / max(1, demand.samples):.1%})",
        f"Tokens      {demand.prompt_tokens:,} of text prompts, {demand.image_tokens:,} of images, "
        f"{counted(demand.positions, 'answer position')} of {counted(demand.answers, 'answer')}; longest sample {demand.longest:,}",
        f"Cache       {bytes_text(plan.bytes(1))} at {plan.bytes_per_position:.0f} bytes per position ({origin}), "
        f"{targets}",
        f"Teacher     {count_text(size.total)} parameters, {recipe.teacher.quantization}: about "
        f"{bytes_text(plan.device_bytes)} of device memory at {recipe.teacher.batch_tokens:,} tokens per forward pass",
    ]
    if demand.missing_answers:
        lines.append(
            f"            {counted(demand.missing_answers, 'sample has', 'samples have')} no answer: the teacher's are counted at "
            f"their maximum length, {recipe.cache.generate_max_tokens} tokens; the time to generate them is not counted"
        )
    if demand.too_long:
        lines.append(
            f"            {counted(demand.too_long, 'sample is', 'samples are')} too long: the teacher takes "
            f"{plan.longest_teacher:,} tokens"
            + ("" if recipe.cache.targets == "exact" else f", the student {plan.longest_student:,}")
            + f" (data.max_length, max_position_embeddings): {', '.join(demand.first_too_long)}"
            + (", ..." if demand.too_long > len(demand.first_too_long) else "")
        )
    if demand.unreadable:
        lines.append(
            f"            {counted(demand.unreadable, 'sample cannot be used and is', 'samples cannot be used and are')} skipped: "
            "firstsight data check names each"
        )
    lines += [f"            {note}" for note in demand.notes]
    lines += [
        "",
        f"GPU-hours, if {plan.utilization:.0%} of a GPU's dense bf16 peak is reached (an assumption, set by --utilization)",
        f"  {'data':>12} {'samples':>16} {'cache':>12}" + "".join(f" {gpu.name:>10}" for gpu in GPUS),
    ]
    for scale in SCALES:
        hours = plan.hours(scale)
        lines.append(
            f"  {f'{scale:,} x':>12} {demand.samples * scale:>16,} {bytes_text(plan.bytes(scale)):>12}"
            + "".join(f" {_hours(hours[gpu.name]):>10}" for gpu in GPUS)
        )
    fits = [("yes" if plan.device_bytes < gpu.memory * 1e9 else "no") for gpu in GPUS]
    lines.append(f"  {'fits':>12} {'':>16} {'':>12}" + "".join(f" {fit:>10}" for fit in fits))
    lines.append(
        f"  {'memory':>12} {'':>16} {'':>12}" + "".join(f" {bytes_text(gpu.memory * 1e9):>10}" for gpu in GPUS)
    )
    lines.append("  Any number of GPUs can share the hours: each runs a worker on the same cache.")
    return "\n".join(lines)


def plan_json(plan: DumpPlan) -> str:
    """The plan as one JSON object."""
    scales = [{"scale": scale, "bytes": plan.bytes(scale), "gpu_hours": plan.hours(scale)} for scale in SCALES]
    return json.dumps({**asdict(plan), "scales": scales, "gpus": [asdict(gpu) for gpu in GPUS]}, indent=2)


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"
