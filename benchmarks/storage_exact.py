"""What exact targets cost in a cache: bytes of real states, positions per second of one core, shuffled reading.

    python -m benchmarks.storage_exact MODEL_DIRECTORY TEXT_FILE [--width 3584]

Runs a causal language model in bf16 over a text, 256 tokens at a time, and stores the states that its head sees. For a larger
width the states of several distant positions are joined.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.exact import ExactCache, open_exact_cache
from storage.format import format_of
from storage.format.v2.exact import STATE_ARRAYS, Exact2
from storage.format.v2.layout import STATE_CHUNK
from storage.head.content import HeadContent, pack_tokens
from storage.maintenance.status import cache_status
from storage.plan import PlannedSample
from storage.targets import ExactSample, ExactTargets
from storage.writer import create_cache, encode_files

WINDOW = 256
ANSWER = 40  # positions of a sample
HEAD_ROWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--width", type=int, help="numbers in a state; default: the model's own")
    parser.add_argument("--shuffled", type=int, default=0, help="positions of a cache that is read in a shuffled order")
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    states = widened(real_states(arguments.model, arguments.text, arguments.positions), arguments.width)
    print(json.dumps(codec_facts(states)))
    if arguments.shuffled:
        print(json.dumps(reading_facts(states, arguments.shuffled, arguments.workers)))


def real_states(model: Path, text: Path, positions: int) -> NDArray[np.uint16]:
    """[P, D] the bits of the states that the head sees."""
    ids = AutoTokenizer.from_pretrained(model)(text.read_text(), return_tensors="pt").input_ids[0][:positions]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        parts = [network.model(ids[None, at : at + WINDOW]).last_hidden_state[0] for at in range(0, len(ids), WINDOW)]
    bits: NDArray[np.uint16] = torch.cat(parts).view(torch.uint16).numpy()
    return bits


def widened(states: NDArray[np.uint16], width: int | None) -> NDArray[np.uint16]:
    """[P, width] states, each joined from those of positions a hundred apart."""
    if width is None:
        return states
    copies = [np.roll(states, -100 * number, axis=0) for number in range(-(-width // states.shape[1]))]
    return np.ascontiguousarray(np.concatenate(copies, axis=1)[:, :width])


def spec_of(width: int) -> dict[str, Any]:
    head = {"rows": HEAD_ROWS, "dtype": "bfloat16", "bias": False}
    return {"format_version": 2, "targets": "exact", "hidden_size": width, "state_dtype": "bfloat16", "head": head}


def samples_of(states: NDArray[np.uint16], count: int) -> Iterator[ExactSample]:
    """Samples of `ANSWER` positions that repeat the states."""
    for number in range(count):
        rows = np.arange(number * ANSWER, (number + 1) * ANSWER) % len(states)
        key = hashlib.sha256(b"%d" % number).hexdigest()
        targets = ExactTargets(target_ids=(rows % HEAD_ROWS).astype(np.uint32), states=states[rows])
        yield ExactSample(key=key, hard=True, targets=targets)


def codec_facts(states: NDArray[np.uint16]) -> dict[str, Any]:
    """Bytes of a unit, and the processor time that a writer and a reader need for it, digests included."""
    version = format_of(spec_of(states.shape[1]))
    assert isinstance(version, Exact2)
    samples = list(samples_of(states, len(states) // ANSWER))
    positions = ANSWER * len(samples)
    empty: dict[str, Any] = {"skipped": {}, "statistics": {}, "notes": {}}

    def write() -> tuple[Any, dict[str, bytes]]:
        checked = [version.checked(sample) for sample in samples]
        return encode_files(checked, version, unit="000000-000000", attempt="a", head="0" * 64, **empty)

    manifest, files = write()
    with tempfile.TemporaryDirectory() as directory:
        write_cache(Path(directory, "cache"), states, positions)
        cache = open_exact_cache(Path(directory, "cache"), memory_budget=0)
        (unit,) = cache.units()
        best = [min(seconds(work) for _ in range(5)) for work in (write, lambda: cache_walk(cache, unit))]
    sizes = {name: sum(len(data) for path, data in files.items() if path.startswith(name)) for name in STATE_ARRAYS}
    return {
        "positions": positions,
        "chunk": STATE_CHUNK,
        "hidden_size": states.shape[1],
        "bytes_per_position": sum(map(len, files.values())) / positions,
        "bytes_per_number": {name: size / positions / states.shape[1] for name, size in sizes.items()},
        "objects": len(manifest.objects),
        "encode_positions_per_s": positions / best[0],
        "decode_positions_per_s": positions / best[1],
    }


def cache_walk(cache: ExactCache, unit: str) -> None:
    """Read, check and decode every chunk of a unit's states once."""
    manifest, rows = cache._unit(unit)
    for chunk in range(-(-int(rows.offsets[-1]) // STATE_CHUNK)):
        cache._states(manifest, chunk)


def seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def write_cache(location: Path, states: NDArray[np.uint16], positions: int) -> None:
    count = positions // ANSWER
    writer = create_cache(location, spec_of(states.shape[1]))
    weight = np.zeros((HEAD_ROWS, states.shape[1]), dtype=np.uint16)
    writer.write_head(HeadContent(arrays={"weight": weight, **pack_tokens({}, HEAD_ROWS)}))
    samples = {sample.key: number for number, sample in enumerate(samples_of(states[:ANSWER, :1], count))}
    writer.plan([PlannedSample(key, ANSWER) for key in samples], unit_positions=4096)
    source = samples_of(states, count)
    for unit in writer.pending():
        with writer.unit(unit) as out:
            for _ in unit.keys:
                out.append(next(source))


class Reading(torch.utils.data.Dataset[int]):
    """The states of samples in a given order."""

    def __init__(self, cache: ExactCache, keys: list[str]) -> None:
        self.cache, self.keys = cache, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> int:
        return len(self.cache[self.keys[index]].targets.states)


def reading_facts(states: NDArray[np.uint16], positions: int, workers: int) -> dict[str, Any]:
    """Time shuffled passes through loader workers, with and without a scratch directory."""
    facts: dict[str, Any] = {"positions": positions, "workers": workers}
    with tempfile.TemporaryDirectory() as directory:
        write_cache(Path(directory, "cache"), states, positions)
        status = cache_status(Path(directory, "cache"))
        facts["bytes_per_position"] = status.bytes_per_position
        for name, scratch in (("decoded", None), ("scratch_filling", "scratch"), ("scratch_filled", "scratch")):
            start = time.perf_counter()
            cache = open_exact_cache(Path(directory, "cache"), scratch=scratch and Path(directory, scratch))
            facts["open_s"] = round(time.perf_counter() - start, 4)
            keys = list(cache)
            order = np.random.default_rng(0).permutation(len(keys))
            data = Reading(cache, [keys[index] for index in order])
            start = time.perf_counter()
            total = sum(int(batch.sum()) for batch in DataLoader(data, batch_size=8, num_workers=workers))
            facts[f"{name}_positions_per_s"] = round(total / (time.perf_counter() - start))
    return facts


if __name__ == "__main__":
    main()
