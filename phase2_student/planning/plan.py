"""What a training run will cost, before any weights are loaded: steps, tokens, padding, and the memory of each way to train."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from firstsight.data.check import check_data, refusal
from firstsight.data.sample import Sample
from firstsight.families.parts import head_shape
from firstsight.identity import with_turns_of_cache
from firstsight.models.gpus import GPUS, bytes_text, count_text
from firstsight.models.loading import load_config, resolve_directory
from firstsight.models.quantization import check_stored
from firstsight.pair import clock_note, load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase2_student.data.order import GlobalBatches
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.planning.footprint import (
    MODES,
    Footprint,
    HeadOfTeacher,
    Mode,
    Shape,
    TailOfCache,
    footprint,
    student_shape,
)
from phase2_student.training.arguments import idle_note, training_arguments, validation_note, warmup_note
from phase2_student.training.loaders import global_batches
from phase2_student.training.prepare import nothing_weighed
from phase2_student.training.weights import check_weights
from storage.errors import CacheError
from storage.format.base import EXACT, FormatVersion
from storage.format.head_table import BITS
from storage.reader import read_root
from storage.store import open_store
from storage.wording import counted


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one epoch and of the whole run."""

    samples: int
    validation_samples: int
    tokens: int
    """Tokens of one epoch: prompts, images and answers, without padding."""
    positions: int
    """Answer positions of one epoch."""
    answers: int
    """Number of answers that the positions belong to, the teacher's own included."""
    padding: float
    """Share of padding in the micro-batches of the first epoch; 0 with `student.padding_free`."""
    longest: int
    """Tokens of the longest sample."""
    longest_answer: int
    """Answer positions of the sample that has the most."""
    most_patches: int
    """Image patches of the sample that has the most."""
    too_long: int
    """Samples longer than `data.max_length` or the student's positions: training refuses them."""
    notes: tuple[str, ...]
    """Notes about the rows, one line each."""
    micro_batch: int
    global_batch: int
    processes: int
    steps_per_epoch: int
    steps: int
    epochs: float


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training and what it costs."""

    work: Work
    shape: Shape
    mode: Mode
    """The mode that the recipe chooses."""
    gradient_checkpointing: bool
    """Whether the recipe chooses gradient checkpointing."""
    teacher_head: HeadOfTeacher | None
    """The teacher's head, which exact targets need; None: top_k targets."""
    tail: TailOfCache | None
    """The shape of a top_k cache's tail, if training uses it."""
    footprints: tuple[Footprint, ...]
    """The memory of each way to train, without and with gradient checkpointing."""


def plan_training(recipe: Recipe, *, processes: int = 1, progress: bool = True) -> TrainingPlan:
    """Read all rows and image headers. Reads no weights and no targets, and decodes no image.

    Args:
        recipe: its data and the student's configuration and tokenizer must exist.
        processes: number of processes, one on each GPU.
        progress: show a bar.

    Raises:
        FirstSightError: bad recipe, data or model.
    """
    recipe = with_turns_of_cache(recipe)  # training takes the answers that the cache has
    directory = resolve_directory(recipe, recipe.student, weights=False)
    check_stored(directory, recipe.student)
    # a plan can be made on any machine, also for GPUs that it does not have
    settings = {**recipe.training, "use_cpu": True}
    arguments = training_arguments(recipe.model_copy(update={"training": settings}))
    config = load_config(directory, recipe.student)
    check_weights(recipe, config)
    prompter = load_prompter(directory, recipe.student, recipe.data)
    half = arguments.bf16 or arguments.fp16 or recipe.student.precision == "bf16_kahan"
    shape = student_shape(config, recipe.student, activation_bytes=2 if half else 4)
    work = _work(recipe, prompter, arguments, processes, progress)
    teacher_head, tail = _teacher_head(recipe, shape.rows), _tail(recipe, shape.rows)
    ways = [
        footprint(
            shape,
            mode,
            tokens=work.micro_batch * work.longest,
            patches=work.micro_batch * work.most_patches,
            gradient_checkpointing=checkpointing,
            whole=teacher_head or tail,
            positions=work.micro_batch * work.longest_answer,
            divergence=DIVERGENCES[recipe.loss.divergence],
        )
        for mode in MODES
        for checkpointing in (False, True)
    ]
    return TrainingPlan(
        work=work,
        shape=shape,
        mode="lora" if recipe.student.lora is not None else recipe.student.precision,
        gradient_checkpointing=bool(arguments.gradient_checkpointing),
        teacher_head=teacher_head,
        tail=tail,
        footprints=tuple(ways),
    )


def _teacher_head(recipe: Recipe, student_rows: int) -> HeadOfTeacher | None:
    """The head of exact targets: from the cache if it exists, else from the teacher that the recipe names.

    Raises:
        ModelError: the recipe states exact targets, but neither cache nor teacher was found.
    """
    section = recipe.cache
    if "targets" in section.model_fields_set and section.targets != EXACT:
        return None
    version = _cache_version(recipe)
    if version is None:
        if section.targets != EXACT:
            return None
        shape = head_shape(load_config(resolve_directory(recipe, recipe.teacher, weights=False), recipe.teacher))
        rows, hidden, head_dtype, state_dtype = (
            shape.rows,
            shape.hidden_size,
            recipe.teacher.dtype,
            recipe.teacher.dtype,
        )
    else:
        if version.kind != EXACT:
            return None
        spec = version.spec
        rows, hidden, head_dtype, state_dtype = (
            spec["head"]["rows"], spec["hidden_size"], spec["head"]["dtype"], spec["state_dtype"],
        )  # fmt: skip
    return HeadOfTeacher(
        rows=min(rows, student_rows),
        hidden=hidden,
        head_bytes=BITS[head_dtype].itemsize,
        state_bytes=BITS[state_dtype].itemsize,
    )


def _tail(recipe: Recipe, student_rows: int) -> TailOfCache | None:
    """The tail's shape that training uses: from the cache if it exists, else from the recipe."""
    if recipe.loss.tail not in (None, "shape"):
        return None
    version = _cache_version(recipe)
    rank = recipe.cache.tail_rank if version is None else version.spec.get("tail_rank")
    return TailOfCache(rows=student_rows, rank=rank) if rank else None


def _cache_version(recipe: Recipe) -> FormatVersion | None:
    """The format version of the recipe's cache; None if there is no cache, since a plan does not need one."""
    try:
        return read_root(open_store(recipe.cache_location))
    except CacheError:
        return None


def _work(recipe: Recipe, prompter: Prompter, arguments: Any, processes: int, progress: bool) -> Work:
    lengths: list[int] = []
    validated = positions = given = longest_answer = most_patches = too_long = 0
    split_places: dict[str, str] = {}
    labelled: Counter[str] = Counter()
    per_token = prompter.family.patches_per_token(prompter.processor)

    def judge(split: str, sample: Sample, _new: bool) -> int:
        nonlocal validated, positions, given, longest_answer, most_patches, too_long
        prompt, image_tokens, answers = prompter.count_tokens(sample)
        # an answer that the teacher gave is only in the cache: counted at its maximum length
        answer = sum(answers) + (recipe.cache.generate_max_tokens if sample.answer is None else 0)
        too_long += prompt + answer > prompter.longest
        split_places.setdefault(split, sample.place)
        labelled[split] += sum(answers)
        validated += split == "validation"
        if split == "train":
            lengths.append(prompt + answer)
            positions += answer
            longest_answer = max(longest_answer, answer)
            given += prompter.turn_count(sample)
            most_patches = max(most_patches, image_tokens * per_token)
        return prompt + answer

    report = check_data(recipe.sources(), judge=judge, turns=recipe.data.turns, images=False, progress=progress)
    if report.row_faults or (report.lost and (recipe.cache.on_error == "stop" or not lengths)):  # none is left
        raise refusal(report)
    summary, unreadable = report.summary, report.fault_count
    if recipe.loss.alpha == 0:
        of = {"train": ("training", len(lengths)), "validation": ("validation", validated)}
        for split, place in split_places.items():
            if not labelled[split] and (split == "train" or arguments.eval_strategy != "no"):
                raise nothing_weighed(recipe, of[split][0], place, of[split][1])
    accumulation = arguments.gradient_accumulation_steps
    batches = global_batches(lengths, arguments, processes=processes)
    steps_per_epoch = -(-len(batches) // accumulation)
    # as the trainer counts them
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_per_epoch * arguments.num_train_epochs)
    return Work(
        samples=len(lengths),
        validation_samples=validated,
        tokens=sum(lengths),
        positions=positions,
        answers=given,
        padding=0.0 if recipe.student.padding_free else padding_share(lengths, batches),
        longest=max(lengths, default=0),
        longest_answer=longest_answer,
        most_patches=most_patches,
        too_long=too_long,
        notes=tuple(
            filter(
                None,
                [
                    *summary.notes(),
                    clock_note(prompter),
                    _unreadable(unreadable),
                    validation_note(recipe),
                    idle_note(recipe),
                    warmup_note(arguments, steps),
                ],
            )
        ),
        micro_batch=batches.batch_size,
        global_batch=batches.batch_size * accumulation * processes,
        processes=processes,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        epochs=steps / max(1, steps_per_epoch),
    )


def _unreadable(count: int) -> str | None:
    said = counted(count, "sample cannot be used and is", "samples cannot be used and are")
    return f"{said} skipped: firstsight data check names each" if count else None


def padding_share(lengths: list[int], batches: GlobalBatches) -> float:
    """Share of padding among all tokens of the micro-batches of one epoch, over all processes."""
    padded = 0
    for samples in batches.steps():
        for first in range(0, len(samples), batches.batch_size):
            micro = [lengths[index] for index in samples[first : first + batches.batch_size]]
            padded += len(micro) * max(micro)
    return 1 - sum(lengths) / padded if padded else 0.0


def plan_text(plan: TrainingPlan) -> str:
    """The plan as lines for the terminal."""
    work, shape = plan.work, plan.shape
    on = f" on {work.processes} GPUs" if work.processes > 1 else ""
    head = plan.teacher_head
    whole = head is not None or plan.tail is not None
    lines = [
        f"Samples     {work.samples:,} to train on, {work.validation_samples:,} to validate",
        *(f"            {note}" for note in work.notes),
        f"Tokens      {work.tokens:,} per epoch, {work.positions:,} of them positions of {counted(work.answers, 'answer')}; "
        f"padding adds {work.padding:.1%}; longest sample {work.longest:,}"
        + (f"; {counted(work.too_long, 'is', 'are')} too long" if work.too_long else ""),
        f"Steps       {work.steps_per_epoch:,} per epoch, {work.steps:,} in {work.epochs:g} epochs, of {work.global_batch} "
        f"samples: micro-batches of {work.micro_batch}{on}",
        f"Student     {count_text(shape.trained + shape.frozen)} parameters, {count_text(shape.trained)} of them trained; "
        f"with LoRA: {count_text(shape.adapters)} in the adapters",
        *([] if head is None else [_head_text(head)]),
        *([] if plan.tail is None else [_tail_text(plan.tail)]),
        "",
        f"Memory of each GPU, for the largest micro-batch ({work.micro_batch} x {work.longest:,} tokens, "
        f"{work.micro_batch * work.most_patches:,} patches); > marks the recipe's choice",
        f"  {'':26} {'weights':>9} {'gradients':>9} {'optimiser':>9} "
        f"{'  targets ' if whole else ''}{'loss':>9} {'graph':>9} {'all':>9}  fits",
    ]
    for way in plan.footprints:
        chosen = way.mode == plan.mode and way.gradient_checkpointing == plan.gradient_checkpointing
        name = f"{way.mode}{', checkpointing' if way.gradient_checkpointing else ''}"
        targets = (way.targets,) if whole else ()
        parts = (way.weights, way.gradients, way.optimizer, *targets, way.loss, way.activations, way.total)
        lines.append(
            f"{'>' if chosen else ' '} {name:26} "
            + " ".join(f"{bytes_text(part):>9}" for part in parts)
            + f"  {', '.join(_fitting(way)) or 'none of the GPUs'}"
        )
    lines += [
        "  GPUs compared: " + ", ".join(f"{gpu.name} {bytes_text(gpu.memory * 1e9)}" for gpu in GPUS),
        "  Choose with student.precision, student.lora and training.gradient_checkpointing. Weights, gradients and optimiser",
        "  are exact; the graph is estimated per token and layer.",
    ]
    return "\n".join(lines)


def _head_text(head: HeadOfTeacher) -> str:
    return (
        f"Targets     exact: the teacher's head of {head.rows:,} x {head.hidden:,}, {bytes_text(head.weights)} on each GPU, and one "
        "projection of the answer positions"
    )


def _tail_text(tail: TailOfCache) -> str:
    return (
        f"Targets     top_k with a tail of rank {tail.rank}: its image of {tail.rows:,} x {tail.rank}, {bytes_text(tail.weights)} on each "
        "GPU, and whole distributions of the answer positions"
    )


def _fitting(way: Footprint) -> list[str]:
    return [gpu.name for gpu in GPUS if way.total <= gpu.memory * 1e9]


def plan_json(plan: TrainingPlan) -> str:
    """The plan as one JSON object."""
    ways = [{**asdict(way), "total": way.total, "fits": _fitting(way)} for way in plan.footprints]
    return json.dumps({**asdict(plan), "footprints": ways, "gpus": [asdict(gpu) for gpu in GPUS]}, indent=2)
