"""The dump against the bare forward pass of its teacher, and against the plain way of getting the same targets.

    python -m benchmarks.dump [--samples 48 --layers 4 --hidden 1536 --vocabulary 152064 --repeats 3 --threads 2]

bare   backbone and head (fp32) at the answer positions of the dump's own batches, made before the clock starts, with one
       vision pass per image as in the dump; nothing is kept
dump   `phase1_teacher.dump` on a new cache: image decoding, encoding, forward, alignment, top-k, tails, fidelity, commits; without
       the self-check, which every dump runs once whatever its size
plain  rows in the data's order, a padded batch of as many tokens at a time, logits of all positions, log-softmax and top-k
       at the answer positions; nothing is written

All run in one process with one copy of the weights; the variants take turns, and the ratios of each turn are printed. Memory is the peak of
the resident set above what was in use before the head (for the dump: before alignment, top-k and tails as well), on the largest
batch.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.dump_setup import Shape, write_data, write_pair, write_recipe
from benchmarks.suite.result import Outcome, compared, text_table
from benchmarks.timed_calls import timed_calls
from firstsight.models.loading import load_teacher
from firstsight.prompting import Encoded, answer_index, collate
from firstsight.recipe import Recipe
from phase1_teacher.dump import DumpSummary, dump, prepare_dump
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.forward.unit_batches import UnitBatch, unit_batches
from phase1_teacher.planning.job import DumpJob
from phase2_student.evaluation.measure.memory import PeakMemory
from storage.reader import open_cache

# B samples of a batch, L tokens of the longest, N answer positions, D hidden size, V rows of the head


@torch.inference_mode()
def bare(forward: TeacherForward, batches: Sequence[UnitBatch]) -> None:
    """Backbone and head at the answer positions of all batches."""
    head = forward.model.get_output_embeddings()
    chunk = forward.head.chunk
    for batch in batches:
        if batch.first:
            forward.vision.forget()
        rows, columns = answer_index([sample.encoded for sample in batch.samples])
        inputs = forward.vision.inputs(batch.samples)
        hidden_BLD = forward.model.base_model(**inputs, use_cache=False).last_hidden_state
        states_ND = hidden_BLD[rows, columns].float()
        for start in range(0, len(states_ND), chunk):
            head(states_ND[start : start + chunk])
        forward.vision.forget(batch.later_images)


@torch.inference_mode()
def plain(model: Any, samples: Sequence[Encoded], batch_rows: int, pad_id: int, top_k: int) -> None:
    """Logits of all positions of padded batches in the data's order, then top-k at the answer positions."""
    for start in range(0, len(samples), batch_rows):
        batch = samples[start : start + batch_rows]
        logits_BLV = model(**collate(batch, pad_id), use_cache=False).logits
        top_of(logits_BLV, batch, top_k)


def top_of(logits_BLV: torch.Tensor, batch: Sequence[Encoded], top_k: int) -> Any:
    """The k largest log-probabilities at the answer positions."""
    rows, columns = answer_index(batch)
    return logits_BLV[rows, columns].float().log_softmax(dim=1).topk(top_k, dim=1)


@torch.inference_mode()
def head_bytes(forward: TeacherForward, batch: UnitBatch, top_k: int) -> tuple[int, int]:
    """Peak bytes of the dump's head and of the plain one, on the same hidden states."""
    head = forward.model.get_output_embeddings()
    encoded = [sample.encoded for sample in batch.samples]
    rows, columns = answer_index(encoded)
    forward.vision.forget()
    hidden_BLD = forward.model.base_model(**forward.vision.inputs(batch.samples), use_cache=False).last_hidden_state
    target_ids = torch.cat([each.target_ids for each in encoded])
    with PeakMemory() as fused:
        forward.head(hidden_BLD[rows, columns], target_ids, torch.arange(0, len(rows), 16))
    with PeakMemory() as whole:
        top_of(head(hidden_BLD), encoded, top_k)
    return fused.peak_bytes or 0, whole.peak_bytes or 0


def timed(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def run_dump(recipe: Recipe, name: str, model: Any) -> tuple[float, DumpSummary, dict[str, float]]:
    """Seconds without the self-check, summary and sums of a dump into a new cache, which is removed afterwards."""
    fresh = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"path": name})})
    job = prepare_dump(fresh, progress=False)
    with timed_calls(TeacherForward, "_self_check") as checks:
        begin = time.perf_counter()
        summary = dump(job, model=model, progress=False)
        seconds = time.perf_counter() - begin - sum(checks)
    sums = open_cache(fresh.cache_location).statistics()
    shutil.rmtree(fresh.cache_location)
    return seconds, summary, sums


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of each variant, turn by turn, and what was dumped."""

    times: dict[str, list[float]]
    """`bare`, `dump` and `plain`; `plain` may have fewer turns."""
    head_bytes: dict[str, int]
    """Peak of the head on the largest batch: `dump` and `plain`."""
    facts: str

    def results(self) -> list[Outcome]:
        """The ratios."""
        bare, ours, plain = (self.times[name] for name in ("bare", "dump", "plain"))
        outcomes: list[Outcome] = [
            compared(
                "dump.time.bare", "the dump", "the bare forward pass of its teacher", mine=ours, theirs=bare, unit="s"
            )
        ]
        if plain:
            what = "a plain dump (padded batches, logits of all positions)"
            outcomes.append(
                compared("dump.time.plain", what, "ours", mine=plain, theirs=ours[: len(plain)], unit="s"),
            )
        peaks = {name: [value / 1e6] for name, value in self.head_bytes.items()}
        what = "the head's memory in a plain dump"
        outcomes.append(
            compared("dump.memory.plain", what, "in ours", mine=peaks["plain"], theirs=peaks["dump"], unit="MB")
        )
        return outcomes


@click.command()
@click.option("--samples", default=48, show_default=True)
@click.option("--questions", default=2, show_default=True, help="Questions per image.")
@click.option("--layers", default=4, show_default=True)
@click.option("--hidden", default=1536, show_default=True)
@click.option("--intermediate", default=8960, show_default=True)
@click.option("--vocabulary", default=152_064, show_default=True, help="Rows of the head; at least 151,657.")
@click.option("--vision-width", default=320, show_default=True)
@click.option("--vision-depth", default=2, show_default=True)
@click.option("--batch-tokens", default=4096, show_default=True)
@click.option("--unit-positions", default=512, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Timed runs of bare and dump.")
@click.option("--plain-repeats", default=1, show_default=True, help="Timed runs of plain, at most `--repeats`.")
@click.option("--threads", default=2, show_default=True)
def main(repeats: int, plain_repeats: int, threads: int, unit_positions: int, vocabulary: int, **sizes: int) -> None:
    """Time the dump against its bare forward pass and against a plain dump, on a random teacher.

    Example: python -m benchmarks.dump --repeats 5
    """
    torch.set_num_threads(threads)
    shape = Shape(rows=vocabulary, tied=False, **sizes)
    found = measure(shape, unit_positions, repeats, min(repeats, plain_repeats))
    click.echo(f"{found.facts}\n")
    for name, values in found.times.items():
        click.echo(f"{name:8}" + " ".join(f"{value:.2f}" for value in values) + " s")
    click.echo(text_table(found.results()))


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part of `make bench`."""
    shape = Shape(
        rows=152_064,
        samples=24,
        questions=2,
        layers=4,
        hidden=1536,
        intermediate=8960,
        vision_width=320,
        vision_depth=2,
        batch_tokens=4096,
    )
    if quick:
        shape = replace(
            shape,
            samples=6,
            layers=1,
            hidden=128,
            intermediate=128,
            vision_width=80,
            vision_depth=1,
            batch_tokens=1024,
        )
    found = measure(shape, 64 if quick else 256, *((1, 1) if quick else (3, 3)))
    click.echo(found.facts)
    return found.results()


def measure(shape: Shape, unit_positions: int, repeats: int, plain_repeats: int) -> Measured:
    """Run the variants in turns on a new random teacher."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_pair(directory, shape)
        write_data(directory / "data", shape)
        recipe = write_recipe(directory, shape, unit_positions)
        job = prepare_dump(recipe, progress=False)
        model = load_teacher(job.pair.directory, recipe.teacher)
        return _measure(job, model, shape, repeats, plain_repeats)


def _measure(job: DumpJob, model: Any, shape: Shape, repeats: int, plain_repeats: int) -> Measured:
    forward = TeacherForward(job, model)
    batches = list(unit_batches(job, job.pending, is_done=lambda _: False))
    in_data_order = sorted((s for b in batches for s in b.samples), key=lambda each: int(each.sample.id[1:]))
    encoded = [sample.encoded for sample in in_data_order]
    longest = max(len(each.input_ids) for each in encoded)
    batch_rows = max(1, shape.batch_tokens // longest)
    top_k, pad_id = job.recipe.cache.top_k, forward.vision.pad_id
    bare(forward, batches[:1])  # starts threads and loads libraries
    times: dict[str, list[float]] = {"bare": [], "dump": [], "plain": []}
    for repeat in range(repeats):
        times["bare"].append(timed(lambda: bare(forward, batches)))
        seconds, summary, sums = run_dump(job.recipe, f"cache{repeat}", model)
        times["dump"].append(seconds)
        if repeat < plain_repeats:
            times["plain"].append(timed(lambda: plain(model, encoded, batch_rows, pad_id, top_k)))
    largest = max(batches, key=lambda batch: sum(len(sample.encoded.input_ids) for sample in batch.samples))
    fused_bytes, whole_bytes = head_bytes(forward, largest, top_k)
    size = sum(part.numel() for part in model.parameters())
    lengths = [len(each.input_ids) for each in encoded]
    facts = (
        f"V = {shape.rows:,}, D = {shape.hidden:,}, {shape.layers} layers, {size / 1e6:,.0f} M parameters, fp32, "
        f"{torch.get_num_threads()} threads\n{len(lengths)} samples of {min(lengths)} to {longest} tokens, "
        f"{sums['positions']:,.0f} answer positions = {sums['positions'] / sums['tokens']:.1%} of {sums['tokens']:,.0f} tokens\n"
        f"dump: {summary.units} units, {len(batches)} forward passes of at most {shape.batch_tokens:,} tokens, "
        f"{1 - sums['tokens'] / sums['padded_tokens']:.1%} padding, {sums['images_encoded']:.0f} vision passes, device idle "
        f"{summary.idle_share:.1%}\nplain: {-(-len(lengths) // batch_rows)} forward passes of {batch_rows} rows, "
        f"{_padding(lengths, batch_rows):.1%} padding, {len(lengths)} vision passes"
    )
    return Measured(times=times, head_bytes={"dump": fused_bytes, "plain": whole_bytes}, facts=facts)


def _padding(lengths: Sequence[int], batch_rows: int) -> float:
    groups = [lengths[start : start + batch_rows] for start in range(0, len(lengths), batch_rows)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)


if __name__ == "__main__":
    main()
