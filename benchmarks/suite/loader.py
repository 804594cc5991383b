"""Reading while training: what targets cost in addition to the samples, and reading rows against `datasets`.

    python -m benchmarks --only loader

    top_k    a shuffled pass over training's own batches with the targets of a cache, against the same batches without them
             (images decoded, prompts encoded, collated); synthetic scenes, the miniature pair
    exact    the same with states of width 3,584, rows of text with answers of 40 tokens; default `cache.memory`
    rows     rows of a JSONL file read and checked, against `datasets` reading the same (if it is installed)

All passes are in this process; a first one, not timed, brings files into the page cache.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from benchmarks.exact_reading import ANSWER, samples_of, write_cache
from benchmarks.fidelity import ensure_cache
from benchmarks.pair import place_pair
from benchmarks.suite import made_up
from benchmarks.suite.result import Outcome, compared, missing
from benchmarks.suite.store import seconds
from firstsight.data.sample import Sample
from firstsight.data.samples import iter_samples
from firstsight.data.source import DataSource
from firstsight.models.loading import head_rows, load_config
from firstsight.pair import load_prompter
from firstsight.prompting import Encoded, Prompter, collate
from firstsight.recipe import StudentSection
from phase2_student.data.exact import ExactSource
from phase2_student.data.order import GlobalBatches
from phase2_student.training.prepare import prepare
from storage import open_exact_cache

_BATCH = 8
_PEER = "loader.time.rows"


class Bare(Dataset[Encoded]):
    """Samples as inputs of the student, without targets."""

    def __init__(self, prompter: Prompter, samples: Sequence[Sample]) -> None:
        self.prompter, self.samples = prompter, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        return self.prompter.encode(self.samples[index])


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    turns = 2 if quick else 5
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        return [
            _top_k(directory / "pair", 16 if quick else 600, turns),
            _exact(directory, 320 if quick else 20_000, 64 if quick else 3584, turns),
            *_rows(directory / "rows.jsonl", 200 if quick else 20_000, turns),
        ]


def _top_k(directory: Path, count: int, turns: int) -> Outcome:
    recipe = place_pair(directory, train=count, validation=8, epochs=1, batch=_BATCH, learning_rate=1e-3, models=None)
    ensure_cache(recipe)
    plan = prepare(recipe, progress=False)
    mine, theirs = _passes(plan.train, plan.source.collator(), plan.source.prompter, turns)
    what = f"a pass over {count:,} samples with images and targets of a top_k cache"
    return compared("loader.time.top_k", what, "the same without targets", mine=mine, theirs=theirs, unit="s")


def _exact(directory: Path, positions: int, width: int, turns: int) -> Outcome:
    section = StudentSection()
    student = directory / "pair" / "models" / "student"
    prompter, rows = load_prompter(student, section), head_rows(load_config(student, section))
    samples = samples_of(prompter, positions)
    location = directory / "exact.zarr"
    write_cache(location, prompter, samples, made_up.states(min(positions, 4096), width), rows)
    source = ExactSource(open_exact_cache(location), prompter, rows=rows, temperature=2.0)
    mine, theirs = _passes(source.dataset(samples), source.collator(), prompter, turns)
    what = f"a pass over {len(samples):,} rows of text with answers of {ANSWER} tokens and states of width {width:,}"
    return compared("loader.time.exact", what, "the same without targets", mine=mine, theirs=theirs, unit="s")


def _passes(data: Any, join: Callable[[Any], Any], prompter: Prompter, turns: int) -> tuple[list[float], list[float]]:
    """Seconds of shuffled passes with and without targets, in turns."""
    bare = Bare(prompter, [sample for _, sample in data.samples])
    batches = GlobalBatches(data.lengths(), batch_size=_BATCH, seed=0)
    mine, theirs = [], []
    for turn in range(turns + 1):
        batches.set_epoch(turn)
        pair = (
            _pass(data, batches, join),
            _pass(bare, batches, lambda items: collate(items, prompter.pad_id)),
        )
        if turn:
            mine.append(pair[0])
            theirs.append(pair[1])
    return mine, theirs


def _pass(data: Any, batches: GlobalBatches, join: Callable[[Any], Any]) -> float:
    begin = time.perf_counter()
    for _ in DataLoader(data, batch_sampler=batches, collate_fn=join):
        pass
    return time.perf_counter() - begin


def _rows(path: Path, count: int, turns: int) -> list[Outcome]:
    absent = missing("datasets", _PEER)
    if absent:
        return [*absent]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = {"role": "user", "content": f"What stands beside table number {number}?"}
            answer = {"role": "assistant", "content": f"Plate {number}."}
            file.write(json.dumps({"id": f"s{number}", "messages": [asked, answer]}) + "\n")
    source = DataSource(files=(path,), root=path.parent)
    mine, theirs = [], []
    for turn in range(turns + 1):
        ours = seconds(deque, iter_samples(source), 0)
        cache = str(path.parent / f"datasets-{turn}")  # each turn reads the file anew
        peers = seconds(_read_by_datasets, path, cache)
        if turn:
            mine.append(ours)
            theirs.append(peers)
    what = f"{count:,} rows of text read, checked and named by a digest"
    return [compared(_PEER, what, "the same file read by `datasets`", mine=mine, theirs=theirs, unit="s")]


def _read_by_datasets(path: Path, cache: str) -> None:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    for _ in load_dataset("json", data_files=str(path), split="train", cache_dir=cache):
        pass
