"""Time of a whole optimiser step at full head size: distillation from both kinds of cache against a stock fine-tuning step.

    python -m benchmarks.step [--repeats 5 --layers 2 --batch 2 --image-tokens 256 --text-tokens 60 --answer-tokens 40]

The shapes of Qwen2-VL-2B (D = 1,536, V = 151,936, tied head) and, for exact targets and the online step, of Qwen2-VL-7B, with
random weights and fewer layers, fp32. All variants train the same student with the same AdamW and take turns, so that a machine
that slows down slows them all. `stock` is `transformers.Trainer` on the stock forward: every position goes through the
head. `hard` is the fused loss at alpha = 0, `cached` at alpha = 0.7 and T = 2, `exact` the same from an exact cache's states and
head in bfloat16, `online` with the teacher. It prints medians, the ratios of the turns, the peak of a step that is not timed, and
the share of the exact step that the projection of the states by the teacher's head takes.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Trainer, TrainingArguments

from benchmarks.suite.result import Outcome, compared, text_table
from benchmarks.timed_calls import timed_calls
from firstsight.models.teacher_head import SharedHead, TeacherHead
from firstsight.prompting import Encoded, collate
from firstsight.vocabulary import VocabularyAlignment
from phase2_student.data.batch import Batch, Collator, Item
from phase2_student.data.cached import join_stored
from phase2_student.data.exact import StateTargets, join_states
from phase2_student.data.online import OnlineTeacher, TeacherView, join_inputs
from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import StoredTargets, TeacherTargets
from phase2_student.training.student import LossSettings, with_distillation_forward
from phase2_student.training.trainer import DistillationTrainer

# B samples, P answer positions of each, K stored entries

K = 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Qwen2-VL with heads of 128."""

    rows: int
    """Rows of its head."""
    hidden: int
    inner: int
    heads: int
    kv: int
    tied: bool


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of both models and of a sample; the defaults are the reference pair's, with fewer layers."""

    student: Shape = Shape(rows=151_936, hidden=1536, inner=8960, heads=12, kv=2, tied=True)
    teacher: Shape = Shape(rows=152_064, hidden=3584, inner=18_944, heads=28, kv=4, tied=False)
    tokens: int = 151_657
    """Tokens of their tokenizer; the last six are marks."""
    vision_width: int = 1280
    layers: int = 2
    """Layers of student and teacher; their vision towers have two."""
    batch: int = 2
    image_tokens: int = 256
    text_tokens: int = 60
    answer_tokens: int = 40

    @property
    def marks(self) -> tuple[int, int, int]:
        """Ids of an image's tokens, and of the tokens before and after them."""
        return self.tokens - 2, self.tokens - 5, self.tokens - 4


QUICK = Sizes(
    student=Shape(rows=1024, hidden=128, inner=128, heads=1, kv=1, tied=True),
    teacher=Shape(rows=1088, hidden=256, inner=128, heads=2, kv=1, tied=False),
    tokens=1000,
    vision_width=80,
    layers=1,
    image_tokens=16,
    text_tokens=8,
    answer_tokens=8,
)
"""For a test."""


def build(shape: Shape, sizes: Sizes) -> Any:
    """A Qwen2-VL of random fp32 weights."""
    image_pad, vision_start, vision_end = sizes.marks
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": shape.rows,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "embed_dim": sizes.vision_width,
            "hidden_size": shape.hidden,
            "num_heads": sizes.vision_width // 80,
            "mlp_ratio": 4,
        },
        image_token_id=image_pad,
        video_token_id=image_pad + 1,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config)


def make_encoded(seed: int, sizes: Sizes) -> Encoded:
    """An image, a question, an answer."""
    g = torch.Generator().manual_seed(seed)
    side = 2 * round(sizes.image_tokens**0.5)
    image_pad, vision_start, vision_end = sizes.marks
    image = [vision_start, *[image_pad] * (side * side // 4), vision_end]
    answer_tokens = sizes.answer_tokens
    text = torch.randint(0, min(sizes.marks), (sizes.text_tokens + answer_tokens,), generator=g)
    ids = torch.cat([torch.tensor(image), text])
    return Encoded(
        input_ids=ids,
        token_types={"mm_token_type_ids": (ids == image_pad).long()},
        images={
            "pixel_values": torch.randn(side * side, 1176, generator=g),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        },
        answer_columns=torch.arange(len(ids) - answer_tokens - 1, len(ids) - 1),
        turns=(answer_tokens,),
    )


def cached_item(encoded: Encoded, tokens: int) -> Item[StoredTargets]:
    """Targets that decay like a language model's."""
    P = encoded.positions
    ids_PK = torch.stack([torch.randperm(tokens)[:K] for _ in range(P)])
    log_P = torch.cat([-1.2 * torch.arange(K).float().add(1).log(), torch.tensor([-3.0])]).log_softmax(dim=0)
    targets = StoredTargets(
        target_ids_N=encoded.target_ids,
        soft_N=torch.ones(P, dtype=torch.bool),
        hard_N=torch.ones(P, dtype=torch.bool),
        ids_NK=ids_PK,
        log_p_NK=log_P[:K].expand(P, K).clone(),
        log_r_N=log_P[K].expand(P).clone(),
    )
    return Item(name="random", encoded=encoded, targets=targets)


def exact_item(encoded: Encoded, width: int) -> Item[StateTargets]:
    """Random states of the teacher."""
    P = encoded.positions
    targets = StateTargets(
        target_ids_N=encoded.target_ids,
        soft_N=torch.ones(P, dtype=torch.bool),
        hard_N=torch.ones(P, dtype=torch.bool),
        states_ND=torch.randn(P, width).bfloat16(),
    )
    return Item(name="random", encoded=encoded, targets=targets)


def shared_head(sizes: Sizes) -> SharedHead:
    """The teacher's head as an exact cache gives it: random rows of all tokens in bfloat16."""
    weight_SD = torch.empty((sizes.tokens, sizes.teacher.hidden), dtype=torch.bfloat16).normal_(std=0.02)
    return SharedHead(weight_SD, None, torch.arange(sizes.tokens))


def with_head(head: SharedHead, batch: Batch[StateTargets]) -> Batch[TeacherTargets]:
    """What `ExactSource.completion` does."""
    return batch.with_targets(TeacherTargets(**vars(batch.targets), head=head, temperature=2.0))


def identical_alignment(sizes: Sizes) -> VocabularyAlignment:
    """The alignment of one tokenizer with two padded heads."""
    forth, back = np.full(sizes.teacher.rows, -1), np.full(sizes.student.rows, -1)
    forth[: sizes.tokens] = back[: sizes.tokens] = np.arange(sizes.tokens)
    return VocabularyAlignment(
        student_of_teacher=forth,
        teacher_of_student=back,
        teacher_tokens=np.arange(sizes.teacher.rows) < sizes.tokens,
        kind="identical",
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of each variant, turn by turn."""

    seconds: dict[str, list[float]]
    peak_mb: dict[str, float]
    """Peak of one more step that is not timed, above what was in use before it."""
    projection: list[float]
    """The share of the exact step that the projection of the states by the teacher's head takes."""

    def results(self) -> list[Outcome]:
        """The ratios."""
        outcomes: list[Outcome] = []
        for name, one, other in (
            ("cached", "cached", "stock"),
            ("hard", "cached", "hard"),
            ("exact", "exact", "cached"),
            ("online", "online", "cached"),
            ("online_exact", "online", "exact"),
        ):
            if one not in self.seconds:
                continue
            mine, theirs = self.seconds[one], self.seconds[other]
            outcomes.append(compared(f"step.time.{name}", _WHAT[one], _WHAT[other], mine=mine, theirs=theirs, unit="s"))
            mine, theirs = [self.peak_mb[one]], [self.peak_mb[other]]
            what = f"{_WHAT[one]}, weights and optimiser apart"
            outcomes.append(compared(f"step.memory.{name}", what, _WHAT[other], mine=mine, theirs=theirs, unit="MB"))
        return outcomes


_WHAT = {
    "stock": "a stock fine-tuning step",
    "hard": "our own step on hard labels",
    "cached": "a step on a top_k cache",
    "exact": "a step on exact targets",
    "online": "a step with the teacher in memory",
}


def measure(sizes: Sizes, repeats: int, *, online: bool = True) -> Measured:
    """Train with every variant in turns."""
    encoded = [make_encoded(seed, sizes) for seed in range(sizes.batch)]
    model = build(sizes.student, sizes)
    objective = Objective(temperature=2.0, alpha=0.7)
    settings = LossSettings(objective=objective, unshared_ids=torch.arange(sizes.tokens, sizes.student.rows))
    model = with_distillation_forward(model, settings)
    model.config.use_cache = False
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(output_dir=scratch, report_to="none", use_cpu=True, learning_rate=1e-5)
        stock = Trainer(model=model, args=arguments)
        fused = DistillationTrainer(model=model, args=arguments, complete=lambda batch: batch)
        optimizer = stock.create_optimizer()
        labels = collate(encoded, 0)
        labels["labels"] = torch.full_like(labels["input_ids"], -100)
        for row, each in enumerate(encoded):
            labels["labels"][row, each.answer_columns + 1] = each.target_ids
        stored = Collator(join=join_stored, pad_id=0)([cached_item(each, sizes.tokens) for each in encoded])
        positions = torch.tensor(sizes.batch * sizes.answer_tokens)

        def with_alpha(trainer: Trainer, inputs: Any, alpha: float = 0.7) -> Callable[[], Any]:
            def step() -> Any:
                model.loss_settings = replace(settings, objective=replace(objective, alpha=alpha))
                return trainer.training_step(model, copy.copy(inputs), positions)

            return step

        variants: dict[str, Callable[[], Any]] = {
            "stock": with_alpha(stock, labels),
            "hard": with_alpha(fused, stored, alpha=0.0),
            "cached": with_alpha(fused, stored),
        }
        exact = DistillationTrainer(model=model, args=arguments, complete=partial(with_head, shared_head(sizes)))
        states = Collator(join=join_states, pad_id=0)([exact_item(each, sizes.teacher.hidden) for each in encoded])
        variants["exact"] = with_alpha(exact, states)
        if online:
            large = build(sizes.teacher, sizes).requires_grad_(False).eval()
            teacher = OnlineTeacher(large, TeacherHead(large.lm_head.weight, None, identical_alignment(sizes)), 2.0)
            rows = torch.arange(sizes.answer_tokens)
            views = [TeacherView(encoded=each, rows=rows) for each in encoded]
            items = [Item(name="random", encoded=each, targets=view) for each, view in zip(encoded, views, strict=True)]
            trainer = DistillationTrainer(model=model, args=arguments, complete=teacher.complete)
            online_batch = Collator(join=partial(join_inputs, 0), pad_id=0)(items)
            variants["online"] = with_alpha(trainer, online_batch)

        def whole_step(name: str) -> None:
            variants[name]()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad(set_to_none=True)

        seconds: dict[str, list[float]] = {name: [] for name in variants}
        projections: list[float] = []
        for repeat in range(repeats + 1):
            for name in variants if repeat % 2 == 0 else reversed(variants):
                begin = time.perf_counter()
                with timed_calls(SharedHead, "logits") as projected:
                    whole_step(name)
                if repeat:  # the first round warms up and makes the optimiser's state
                    seconds[name].append(time.perf_counter() - begin)
                    projections += [sum(projected) / seconds[name][-1]] if projected else []
        peaks: dict[str, float] = {}
        for name in variants:
            with PeakMemory() as memory:
                whole_step(name)
            peaks[name] = (memory.peak_bytes or 0) / 1e6
    return Measured(seconds=seconds, peak_mb=peaks, projection=projections)


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part of `make bench`."""
    return measure(QUICK if quick else Sizes(), 2 if quick else 3).results()


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--layers",
    default=Sizes.layers,
    show_default=True,
    help="Layers of student and teacher, without the vision towers.",
)
@click.option("--batch", default=Sizes.batch, show_default=True)
@click.option("--image-tokens", default=Sizes.image_tokens, show_default=True)
@click.option("--text-tokens", default=Sizes.text_tokens, show_default=True)
@click.option("--answer-tokens", default=Sizes.answer_tokens, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--online/--no-online", default=True, show_default=True, help="With the teacher: 6 GB more memory.")
def main(repeats: int, threads: int, online: bool, **given: Any) -> None:
    """Time distillation steps from both kinds of targets against a stock fine-tuning step.

    Example: python -m benchmarks.step --repeats 3
    """
    torch.set_num_threads(threads)
    sizes = Sizes(**given)
    found = measure(sizes, repeats, online=online)
    click.echo(
        f"{sizes.batch} samples, {sizes.answer_tokens} answer positions each; D = {sizes.student.hidden:,}, "
        f"V = {sizes.student.rows:,}, {sizes.layers} layers, fp32, {threads} threads, {repeats} turns"
    )
    for name, values in found.seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        click.echo(f"{name:8}{statistics.median(values):8.2f} s  ({spread}){found.peak_mb[name]:9,.0f} MB")
    click.echo(text_table(found.results()))
    share = statistics.median(found.projection)
    click.echo(f"exact: the projection by the teacher's head is {share:.1%} of the step")


if __name__ == "__main__":
    main()
