"""Train the miniature teacher and student base from scratch.

    python -m firstsight.demo.miniature.train --out DIR [--only teacher|student]

leaves DIR/teacher and DIR/student, as shipped in this package, and a log with the accuracy on held-out questions.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration

from firstsight.demo.miniature.build import build_student, build_teacher, build_tokenizer, save_pair_member
from firstsight.demo.miniature.optimizers import Optimizers
from firstsight.demo.miniature.pool import Batch, Pool, Row, Sampler, collate, make_pool
from firstsight.demo.miniature.sight import labels_of, teach_sight
from firstsight.demo.synth.scenes import CATEGORIES

# Seeds of scenes that neither `firstsight data synth` nor the held-out pool draws from.
TRAINING_POOL_SEED = 710_001
HELD_OUT_POOL_SEED = 710_002


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training run."""

    steps: int
    seed: int
    # Clips per step, and the share of them with several frames.
    batch: int = 24
    temporal: float = 0.4
    # Share of the clips of one frame that are drawn for counting, in addition to an even share.
    counting: float = 0.0
    # Steps in which the vision tower alone learns to see, images per step, and their learning rate.
    sight_steps: int
    sight_batch: int = 32
    sight_learning_rate: float = 3e-3
    # Weight of the read-out's loss while the language model learns.
    sight_weight: float = 0.02
    # Until this share of the steps, every clip is described in full and asked about once; after that, clips of one frame
    # are asked about five times, and a tenth of all clips are described.
    describe_until: float = 0.12
    questions: int = 5
    captions: float = 0.1
    learning_rate: float = 2e-3
    warm_up: int = 200
    report_every: int = 125
    save_every: int = 500


# The second and third rounds are for counting, which may be at 50% after the first; the last is for all that is still weak then.
TEACHER_PLANS = (
    Plan(steps=3200, sight_steps=1500, seed=0),
    Plan(
        steps=1000,
        sight_steps=1200,
        seed=2,
        describe_until=0.0,
        counting=0.4,
        learning_rate=1e-3,
    ),
    Plan(steps=700, sight_steps=150, seed=3, describe_until=0.0, counting=0.5, learning_rate=1.5e-3),
    Plan(steps=1000, sight_steps=150, seed=4, describe_until=0.0, counting=0.2, learning_rate=1.5e-3),
)
STUDENT_PLANS = (Plan(steps=1200, sight_steps=500, seed=1),)


def answer_logits(model: Qwen2VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Logits at the answer positions, (N, rows of the head)."""
    hidden_BLD = model.model(**batch.inputs, use_cache=False).last_hidden_state
    logits_NV: torch.Tensor = model.lm_head(hidden_BLD[batch.rows_N, batch.columns_N])
    return logits_NV


class _Batches:
    """Batches of rows of similar length: rows for four batches are drawn at a time and sorted, which saves padding."""

    AHEAD = 4

    def __init__(self, sampler: Sampler, plan: Plan, pad: int, image_pad: int) -> None:
        self._sampler, self._plan, self._pad, self._image_pad = sampler, plan, pad, image_pad
        self._rng = np.random.default_rng([plan.seed, 1])
        self._waiting: list[list[Row]] = []

    def next(self, step: int) -> Batch:
        plan = self._plan
        if not self._waiting:
            early = step < plan.describe_until * plan.steps
            questions, captions = (1, 1.0) if early else (plan.questions, plan.captions)
            rows = [
                self._sampler.draw(self._rng, plan.temporal, questions, captions, plan.counting)
                for _ in range(self.AHEAD * plan.batch)
            ]
            rows.sort(key=len)
            batches = [rows[start : start + plan.batch] for start in range(0, len(rows), plan.batch)]
            self._waiting = [batches[int(i)] for i in self._rng.permutation(len(batches))]
        return collate(self._waiting.pop(), self._sampler.pool, self._pad, self._image_pad)


@torch.inference_mode()
def forced_accuracy(
    model: Qwen2VLForConditionalGeneration, rows: list[Row], pool: Pool, *, grey: bool = False
) -> dict[str, float]:
    """Share of rows whose every answer token is the most likely one, per category: what greedy decoding would get right."""
    config = model.config
    right: dict[str, list[bool]] = {category: [] for category in CATEGORIES}
    model.eval()
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        batch = collate(part, pool, config.text_config.pad_token_id, config.image_token_id, grey=grey)
        hits_N = answer_logits(model, batch).argmax(-1) == batch.targets_N
        for number, row in enumerate(part):
            right[row.branches[0].category].append(bool(hits_N[batch.rows_N == number].all()))
    model.train()
    return {category: float(np.mean(hits)) for category, hits in right.items() if hits}


def held_out_rows(pool: Pool, tokenizer: Qwen2Tokenizer) -> list[Row]:
    """One question about every clip of the pool, the same every time."""
    sampler = Sampler(pool, tokenizer)
    rng = np.random.default_rng(3)
    return [sampler.row(index, [sampler.own_question(rng, index)]) for index in range(len(pool.clips))]


@contextmanager
def _visual_tokens(model: Qwen2VLForConditionalGeneration) -> Iterator[list[torch.Tensor]]:
    """Collects what the vision tower passes to the language model within the block, (C, D) each time."""
    seen: list[torch.Tensor] = []
    hook = model.model.visual.register_forward_hook(lambda _module, _inputs, out: seen.append(out.pooler_output))
    try:
        yield seen
    finally:
        hook.remove()


def train(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    plan: Plan,
    training: Pool,
    held_out: Pool,
    directory: Path,
) -> None:
    """Train `model` in place by `plan`; the directory holds a loadable checkpoint from the first report on."""
    text = model.config.text_config
    batches = _Batches(Sampler(training, tokenizer), plan, text.pad_token_id, model.config.image_token_id)
    rows = held_out_rows(held_out, tokenizer)
    log = directory.parent / f"{directory.name}.log.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    read_out, named = teach_sight(
        model,
        training,
        steps=plan.sight_steps,
        batch=plan.sight_batch,
        learning_rate=plan.sight_learning_rate,
        seed=plan.seed,
    )
    click.echo(f"sight: {named:.1%} of the things named correctly in every respect")
    optimizers = Optimizers(
        [*model.named_parameters(), *read_out.named_parameters()],
        learning_rate=plan.learning_rate,
        steps=plan.steps,
        warm_up=plan.warm_up,
    )
    model.train()
    losses: list[float] = []
    for step in range(plan.steps):
        batch = batches.next(step)
        with _visual_tokens(model) as seen:
            loss = cross_entropy(answer_logits(model, batch), batch.targets_N)
        sight, named = read_out.loss(seen[0], labels_of([training.scenes[number] for number in batch.frames]))
        optimizers.step(loss + plan.sight_weight * sight)
        losses.append(loss.item())
        done = step + 1
        if done % plan.report_every == 0 or done == plan.steps:
            accuracy = forced_accuracy(model, rows, held_out)
            report = {
                "step": done,
                "loss": round(float(np.mean(losses)), 4),
                "named": round(named, 3),
                "seconds": round(time.perf_counter() - start),
                "accuracy": round(float(np.mean(list(accuracy.values()))), 4),
                "per_category": {category: round(value, 3) for category, value in accuracy.items()},
            }
            losses = []
            click.echo(json.dumps(report))
            with log.open("a") as lines:
                lines.write(json.dumps(report) + "\n")
        if done % plan.save_every == 0 or done == plan.steps:
            save_pair_member(model, tokenizer, directory)


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where to write.")
@click.option("--only", type=click.Choice(["teacher", "student"]), help="Train one of the two.")
@click.option("--clips", default=30_000, show_default=True, help="Clips to draw the training questions from.")
def main(out: Path, only: str | None, clips: int) -> None:
    """Train the miniature teacher and student base from scratch.

    Example: python -m firstsight.demo.miniature.train --out build/miniature
    """
    torch.set_num_threads(2)
    tokenizer = build_tokenizer()
    start = time.perf_counter()
    training = make_pool(TRAINING_POOL_SEED, clips)
    held_out = make_pool(HELD_OUT_POOL_SEED, 280)
    click.echo(f"{len(training.frames_F)} images in {time.perf_counter() - start:.0f} s")
    for name, build, plans in (("teacher", build_teacher, TEACHER_PLANS), ("student", build_student, STUDENT_PLANS)):
        if only in (None, name):
            model = build(tokenizer, plans[0].seed)
            for plan in plans:
                train(model, tokenizer, plan, training, held_out, out / name)


if __name__ == "__main__":
    main()
