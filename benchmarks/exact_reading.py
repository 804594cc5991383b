"""A shuffled pass over an exact cache through training's own data loader: how long a step waits, how much memory workers take.

    python -m benchmarks.exact_reading build/smollm2 TEXT_FILE [--positions 200000 --width 3584 --workers 4 --memory 64 --step 0.1]

The directory has a teacher and a student of one tokenizer, as `benchmarks.smollm2` makes them. The states are the teacher's own over
the text (`benchmarks.storage_exact`), made wider and repeated; answers have 40 tokens. A step is only a pause, so the figures are
those of reading alone. Memory is what each worker does not share with others, above what it had after its first batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks.storage_exact import real_states, widened
from firstsight.answer_alignment import TeacherTokens
from firstsight.data.samples import Sample
from firstsight.models.loading import head_rows, load_config
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import StudentSection
from phase2_student.data.exact import ExactSource
from phase2_student.data.order import GlobalBatches
from storage import ExactSample, ExactTargets, HeadContent, PlannedSample, create_cache, open_exact_cache
from storage.head.content import pack_tokens

ANSWER = 40
BATCH = 8


def samples_of(prompter: Prompter, positions: int) -> list[Sample]:
    """Questions with answers of `ANSWER` tokens, end of turn included."""
    words = ["red", "blue", "one", "two", "apple", "book", "left", "right"]
    chosen = np.random.default_rng(0)
    found = []
    for number in range(positions // ANSWER):
        answer = list(chosen.choice(words, ANSWER))
        over = len(prompter.answer_ids(" ".join(answer))) - ANSWER
        answer = answer[: ANSWER - over]  # each word is a token, except perhaps the first
        assert len(prompter.answer_ids(" ".join(answer))) == ANSWER
        found.append(
            Sample(
                id=f"q{number}",
                messages=(
                    {"role": "user", "content": [{"type": "text", "text": f"Question {number}?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": " ".join(answer)}]},
                ),
                images=(),
                times=None,
                category=None,
                environment=None,
                place=f"made:{number + 1}",
            )
        )
    return found


def write_cache(
    location: Path, prompter: Prompter, samples: list[Sample], states: NDArray[np.uint16], rows: int
) -> None:
    """Write an exact cache of these samples, with random rows in its head."""
    tokens = TeacherTokens.of_prompter(prompter, rows)
    width = states.shape[1]
    spec = {
        "format_version": 2,
        "targets": "exact",
        "hidden_size": width,
        "state_dtype": "bfloat16",
        "head": {"rows": rows, "dtype": "bfloat16", "bias": False},
        "teacher": tokens.identity(),
    }
    writer = create_cache(location, spec)
    weight = torch.empty((rows, width), dtype=torch.bfloat16).normal_(std=0.02).view(torch.uint16).numpy()
    writer.write_head(HeadContent(arrays={"weight": weight, **pack_tokens(tokens.stored(), rows)}))
    by_key = {sample.key: number for number, sample in enumerate(samples)}
    writer.plan([PlannedSample(key, ANSWER) for key in by_key], unit_positions=4096)
    for unit in writer.pending():
        with writer.unit(unit) as out:
            for key in unit.keys:
                number = by_key[key]
                taken = np.arange(number * ANSWER, (number + 1) * ANSWER) % len(states)
                ids = np.array(prompter.answer_ids(samples[number].answer or ""), dtype=np.uint32)
                out.append(ExactSample(key=key, hard=True, targets=ExactTargets(target_ids=ids, states=states[taken])))


def private_bytes(pid: int) -> int:
    """Memory that a process shares with no other (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def walk(source: ExactSource, data: Any, workers: int, step: float) -> dict[str, Any]:
    """Time one shuffled pass."""
    batches = GlobalBatches(data.lengths(), batch_size=BATCH, seed=0)
    loader = DataLoader(data, batch_sampler=batches, collate_fn=source.collator(), num_workers=workers)
    waited, positions, most, first = 0.0, 0, 0, 0
    begin = last = time.perf_counter()
    iterator: Iterator[Any] = iter(loader)
    processes = [process.pid for process in getattr(iterator, "_workers", [])]
    for number, batch in enumerate(iterator):
        now = time.perf_counter()
        waited += (now - last) if number else 0.0
        begin = now if number == 0 else begin  # the workers start before the clock does
        positions += len(batch.names) * ANSWER
        if number % 50 == 0 and processes:
            private = max(map(private_bytes, processes))
            first = first or private
            most = max(most, private)
        time.sleep(step)
        last = time.perf_counter()
    total = last - begin
    return {
        "positions": positions,
        "positions/s": round(positions / total),
        "data_wait": round(waited / total, 4),
        "worker's own memory, MB": round((most - first) / 1e6),
    }


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("text", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--positions", default=200_000, show_default=True)
@click.option("--width", default=3584, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--memory", default=64, show_default=True, help="cache.memory of each process, MiB.")
@click.option("--step", default=0.1, show_default=True, help="Seconds of a step of 8 samples.")
def main(directory: Path, text: Path, positions: int, width: int, workers: int, memory: int, step: float) -> None:
    """Time a shuffled pass over an exact cache, with and without a scratch directory."""
    torch.set_num_threads(1)
    section = StudentSection()
    prompter = load_prompter(directory / "student", section)
    rows = head_rows(load_config(directory / "student", section))
    states = widened(real_states(directory / "teacher", text, 4096), width)
    samples = samples_of(prompter, positions)
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder, "cache.zarr")
        begin = time.perf_counter()
        write_cache(location, prompter, samples, states, rows)
        click.echo(f"{positions:,} positions of width {width:,} written in {time.perf_counter() - begin:.0f} s")
        for name, scratch in (("decoded", None), ("scratch, first pass", "s"), ("scratch, second pass", "s")):
            for pause in (0.0, step):
                cache = open_exact_cache(
                    location, memory_budget=memory * 2**20, scratch=None if scratch is None else Path(folder, scratch)
                )
                source = ExactSource(cache, prompter, rows=rows, temperature=2.0)
                begin = time.perf_counter()
                data = source.dataset(samples)
                checked = time.perf_counter() - begin
                facts = walk(source, data, workers, pause)
                click.echo(f"{name}, step {pause:g} s: {facts}, targets compared in {checked:.1f} s")


if __name__ == "__main__":
    main()
