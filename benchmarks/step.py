"""Time of a whole optimiser step at full head size: distillation from both kinds of cache against a stock fine-tuning step.

    python -m benchmarks.step [--repeats 5 --layers 2 --batch 2 --image-tokens 256 --text-tokens 60 --answer-tokens 40]

The shapes of Qwen2-VL-2B (D = 1,536, V = 151,936, tied head) and, for exact targets and the online step, of Qwen2-VL-7B, with
random weights and fewer layers, fp32. All variants train the same student with the same AdamW and take turns, so that a slow
spell of the machine slows them all. `stock` is `transformers.Trainer` on the stock forward: every position goes through the
head. `hard` is the fused loss at alpha = 0, `cached` at alpha = 0.7 and T = 2, `exact` the same from an exact cache's states and
head in bfloat16, `online` with the teacher. Medians and ratios are printed, and the share of the exact step that is the projection
of the states by the teacher's head.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Trainer, TrainingArguments

from benchmarks.timed_calls import timed_calls
from firstsight.models.teacher_head import SharedHead, TeacherHead
from firstsight.prompting import Encoded, collate
from firstsight.vocabulary import VocabularyAlignment
from phase2_student.data.batch import Batch, Collator, Item
from phase2_student.data.cached import join_stored
from phase2_student.data.exact import StateTargets, join_states
from phase2_student.data.online import OnlineTeacher, TeacherView, join_inputs
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import StoredTargets, TeacherTargets
from phase2_student.training.student import LossSettings, with_distillation_forward
from phase2_student.training.trainer import DistillationTrainer

# B samples, P answer positions of each, K stored entries

STUDENT_ROWS, TEACHER_ROWS, TOKENS = 151_936, 152_064, 151_657
TEACHER_HIDDEN = 3584
IMAGE_PAD, VISION_START, VISION_END = 151_655, 151_652, 151_653
K = 64


def build(rows: int, hidden: int, inner: int, heads: int, kv: int, layers: int, *, tied: bool) -> Any:
    """A Qwen2-VL of random fp32 weights."""
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 2, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4},
        image_token_id=IMAGE_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config)


def make_encoded(seed: int, image_tokens: int, text_tokens: int, answer_tokens: int) -> Encoded:
    """An image, a question, an answer."""
    g = torch.Generator().manual_seed(seed)
    side = 2 * round(image_tokens**0.5)
    image = [VISION_START, *[IMAGE_PAD] * (side * side // 4), VISION_END]
    text = torch.randint(0, 150_000, (text_tokens + answer_tokens,), generator=g)
    ids = torch.cat([torch.tensor(image), text])
    return Encoded(
        input_ids=ids,
        token_types={"mm_token_type_ids": (ids == IMAGE_PAD).long()},
        images={
            "pixel_values": torch.randn(side * side, 1176, generator=g),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        },
        answer_columns=torch.arange(len(ids) - answer_tokens - 1, len(ids) - 1),
        turns=(answer_tokens,),
    )


def cached_item(encoded: Encoded) -> Item[StoredTargets]:
    """Targets that decay like a language model's."""
    P = encoded.positions
    ids_PK = torch.stack([torch.randperm(TOKENS)[:K] for _ in range(P)])
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


def exact_item(encoded: Encoded) -> Item[StateTargets]:
    """Random states of the teacher."""
    P = encoded.positions
    targets = StateTargets(
        target_ids_N=encoded.target_ids,
        soft_N=torch.ones(P, dtype=torch.bool),
        hard_N=torch.ones(P, dtype=torch.bool),
        states_ND=torch.randn(P, TEACHER_HIDDEN).bfloat16(),
    )
    return Item(name="random", encoded=encoded, targets=targets)


def shared_head() -> SharedHead:
    """The teacher's head as an exact cache gives it: random rows of all tokens in bfloat16."""
    weight_SD = torch.empty((TOKENS, TEACHER_HIDDEN), dtype=torch.bfloat16).normal_(std=0.02)
    return SharedHead(weight_SD, None, torch.arange(TOKENS))


def with_head(head: SharedHead, batch: Batch[StateTargets]) -> Batch[TeacherTargets]:
    """What `ExactSource.completion` does."""
    return batch.with_targets(TeacherTargets(**vars(batch.targets), head=head, temperature=2.0))


def identical_alignment() -> VocabularyAlignment:
    """The alignment of one tokenizer with two padded heads."""
    forth, back = np.full(TEACHER_ROWS, -1), np.full(STUDENT_ROWS, -1)
    forth[:TOKENS] = back[:TOKENS] = np.arange(TOKENS)
    return VocabularyAlignment(
        student_of_teacher=forth,
        teacher_of_student=back,
        teacher_tokens=np.arange(TEACHER_ROWS) < TOKENS,
        kind="identical",
    )


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--layers", default=2, show_default=True, help="Layers of student and teacher; their vision towers have two."
)
@click.option("--batch", default=2, show_default=True)
@click.option("--image-tokens", default=256, show_default=True)
@click.option("--text-tokens", default=60, show_default=True)
@click.option("--answer-tokens", default=40, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--online/--no-online", default=True, show_default=True, help="With the teacher: 6 GB more memory.")
def main(
    repeats: int,
    layers: int,
    batch: int,
    image_tokens: int,
    text_tokens: int,
    answer_tokens: int,
    threads: int,
    online: bool,
) -> None:
    """Time distillation steps from both kinds of targets against a stock fine-tuning step.

    Example: python -m benchmarks.step --repeats 3
    """
    torch.set_num_threads(threads)
    encoded = [make_encoded(seed, image_tokens, text_tokens, answer_tokens) for seed in range(batch)]
    model = build(STUDENT_ROWS, 1536, 8960, 12, 2, layers, tied=True)
    objective = Objective(temperature=2.0, alpha=0.7)
    settings = LossSettings(objective=objective, unshared_ids=torch.arange(TOKENS, STUDENT_ROWS))
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
        stored = Collator(join=join_stored, pad_id=0)([cached_item(each) for each in encoded])
        positions = torch.tensor(batch * answer_tokens)

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
        exact = DistillationTrainer(model=model, args=arguments, complete=partial(with_head, shared_head()))
        states = Collator(join=join_states, pad_id=0)([exact_item(each) for each in encoded])
        variants["exact"] = with_alpha(exact, states)
        if online:
            large = build(TEACHER_ROWS, TEACHER_HIDDEN, 18_944, 28, 4, layers, tied=False).requires_grad_(False).eval()
            teacher = OnlineTeacher(large, TeacherHead(large.lm_head.weight, None, identical_alignment()), 2.0)
            views = [TeacherView(encoded=each, rows=torch.arange(answer_tokens)) for each in encoded]
            items = [Item(name="random", encoded=each, targets=view) for each, view in zip(encoded, views, strict=True)]
            trainer = DistillationTrainer(model=model, args=arguments, complete=teacher.complete)
            online_batch = Collator(join=partial(join_inputs, 0), pad_id=0)(items)
            variants["online"] = with_alpha(trainer, online_batch)

        seconds: dict[str, list[float]] = {name: [] for name in variants}
        projections: list[float] = []
        for repeat in range(repeats + 1):
            for name in variants if repeat % 2 == 0 else reversed(variants):
                begin = time.perf_counter()
                with timed_calls(SharedHead, "logits") as projected:
                    variants[name]()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                model.zero_grad(set_to_none=True)
                if repeat:  # the first round warms up and makes the optimiser's state
                    seconds[name].append(time.perf_counter() - begin)
                    projections += [sum(projected) / seconds[name][-1]] if projected else []
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    click.echo(
        f"{batch} samples of {len(encoded[0].input_ids)} positions, {answer_tokens} of them of the answer; D = 1,536, "
        f"V = {STUDENT_ROWS:,}, {layers} layers, fp32, {threads} threads, median of {repeats}"
    )
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        click.echo(f"{name:8}{median:8.2f} s  ({spread})")
    click.echo(f"cached / stock   {medians['cached'] / medians['stock']:.3f}")
    click.echo(f"cached / hard    {medians['cached'] / medians['hard']:.3f}")
    click.echo(f"exact / cached   {medians['exact'] / medians['cached']:.3f}")
    click.echo(f"exact: the projection by the teacher's head is {statistics.median(projections):.1%} of the step")
    if online:
        click.echo(f"online / exact   {medians['online'] / medians['exact']:.3f}")
        click.echo(f"online / cached  {medians['online'] / medians['cached']:.3f}")


if __name__ == "__main__":
    main()
