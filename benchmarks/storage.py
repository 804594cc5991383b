"""Size and speed of the cache on targets of a trained language model, of kind top_k or of kind exact.

    python -m benchmarks.storage_model --out build/storage_targets.npz     # once, about half an hour on one core
    python -m benchmarks.storage --targets build/storage_targets.npz
    python -m benchmarks.storage --exact MODEL_DIRECTORY --text TEXT_FILE --width 3584    # see benchmarks/storage_exact.py

Prints bytes per position, field by field and with every object counted, next to the entropy of ids and values and to
plain fp16 values + uint32 ids; the mean head KL; encoding, decoding and reading in positions per second of one core; the
time to serve a sample from a decoded unit. Speeds are medians over runs, in seconds of processor time if no disk is
involved; `--json` prints the same as one object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.storage_exact import codec_facts, real_states, widened
from storage.format.base import FormatVersion
from storage.format.chunks import decode_chunk, encode_chunk
from storage.format.samples import encode_turns
from storage.format.v1.arrays import VALUE_STEP
from storage.format.v1.encoding import encode_targets
from storage.maintenance.status import cache_status
from storage.plan import PlannedSample
from storage.reader import Cache, open_cache
from storage.targets import SampleTargets, Targets
from storage.writer import CacheWriter, create_cache, encode_files

NODES = (1.0, 1.5, 2.0, 4.0)
NAMES = ("ids", "logprobs", "tail", "target_ids", "target_logprobs")


def load_samples(path: Path, answer: int) -> tuple[list[SampleTargets], dict[str, NDArray[Any]]]:
    """The saved targets cut into answers of a given length, and the whole arrays."""
    with np.load(path) as file:
        whole = {name: file[name] for name in NAMES}
        loss = file["loss"]
    return cut(whole, answer), whole | {"loss": loss}


def cut(whole: dict[str, NDArray[Any]], answer: int) -> list[SampleTargets]:
    """Samples of `answer` positions each; positions left over at the end are dropped."""
    samples = []
    for start in range(0, len(whole["ids"]) - answer + 1, answer):
        rows = {name: array[start : start + answer] for name, array in whole.items()}
        targets = Targets(**rows, soft=np.ones(answer, dtype=np.bool_))
        key = hashlib.sha256(start.to_bytes(8, "little")).hexdigest()
        samples.append(SampleTargets(key=key, hard=True, targets=targets))
    return samples


def entropy(symbols: NDArray[Any]) -> float:
    """Order-0 entropy of integers, bits per symbol."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def head_kl(given: NDArray[np.float32], stored: NDArray[np.float32]) -> NDArray[np.float64]:
    """[P] KL divergence, nats, of the stored entries from the given ones, both renormalised on these entries."""
    log_p = given - np.log(np.exp(given.astype(np.float64)).sum(axis=1, keepdims=True))
    log_q = stored - np.log(np.exp(stored.astype(np.float64)).sum(axis=1, keepdims=True))
    kl: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return kl


def rate(positions: int, work: Callable[[], object], clock: Callable[[], float], runs: int) -> float:
    """Positions per second: the median of several runs."""
    seconds = []
    for _ in range(runs + 1):
        start = clock()
        work()
        seconds.append(clock() - start)
    return positions / statistics.median(seconds[1:])


def write_cache(
    location: Path, samples: Sequence[SampleTargets], words: int, unit_positions: int = 4096
) -> tuple[CacheWriter, float]:
    """Write a cache of these samples; returns it, and the seconds that its units took.

    Args:
        location: where the new cache goes.
        samples: at least one sample.
        words: size of the vocabulary, all of it shared.
        unit_positions: positions of a unit.
    """
    spec = {
        "top_k": samples[0].targets.ids.shape[1],
        "temperatures": list(NODES),
        "vocabulary_size": words,
        "shared_ids": [[0, words]],
    }
    writer = create_cache(location, spec)
    planned = (PlannedSample(sample.key, len(sample.targets)) for sample in samples)
    writer.plan(planned, unit_positions=unit_positions)
    table = {sample.key: sample for sample in samples}
    start = time.perf_counter()
    for unit in writer.pending():
        with writer.unit(unit) as out:
            for key in unit.keys:
                out.append(table[key])
    return writer, time.perf_counter() - start


def size_facts(location: Path, whole: dict[str, NDArray[Any]], positions: int) -> dict[str, Any]:
    """Size of every object of the cache, against entropies and the plain layout."""
    status = cache_status(location)
    open_cache(location)  # builds the index
    index = sum(file.stat().st_size for file in location.rglob("*.bin"))
    on_disk = sum(file.stat().st_size for file in location.rglob("*") if file.is_file()) - index
    steps = np.rint(-whole["logprobs"][:positions].astype(np.float64) / VALUE_STEP).astype(np.int64)
    top_k = steps.shape[1]
    ids_bytes = entropy(whole["ids"][:positions]) * top_k / 8
    value_bytes = entropy(np.diff(steps, axis=1, prepend=0)) * top_k / 8
    return {
        "positions": positions,
        "bytes_per_position": on_disk / positions,
        "index_bytes_per_position": index / positions,
        "fields": {name: bits / 8 for name, bits in status.field_bits.items()},
        "entropy_ids": ids_bytes,
        "entropy_values": value_bytes,
        "limit_1.15_entropy_plus_16": 1.15 * (ids_bytes + value_bytes) + 16,
        "plain_fp16_uint32": top_k * 6 + len(NODES) * 2 + 4 + 2,
    }


def error_facts(cache: Cache, samples: list[SampleTargets]) -> dict[str, float]:
    """How far the values read are from those written."""
    kl, worst, tails = [], 0.0, 0.0
    for sample in samples:
        found = cache[sample.key].targets
        np.testing.assert_array_equal(found.ids, sample.targets.ids)
        np.testing.assert_array_equal(found.target_ids, sample.targets.target_ids)
        kl.append(head_kl(sample.targets.logprobs, found.logprobs))
        worst = max(worst, float(np.abs(found.logprobs - sample.targets.logprobs).max()))
        tails = max(tails, float(np.abs(found.tail - sample.targets.tail).max()))
    every = np.concatenate(kl)
    return {
        "mean_head_kl": float(every.mean()),
        "largest_head_kl": float(every.max()),
        "largest_error_nats": worst,
        "largest_tail_error_nats": tails,
    }


def speed_facts(
    samples: list[SampleTargets], version: FormatVersion, unit_positions: int, runs: int
) -> dict[str, float]:
    """Encoding and decoding in memory, unit by unit."""
    units = list(_units(samples, unit_positions))
    positions = sum(len(sample.targets) for unit in units for sample in unit)
    layout = version.layout

    def encode_only() -> list[Any]:
        encoded = []
        for unit in units:
            targets = Targets.concatenate([sample.targets for sample in unit], layout.widths)
            attributes, arrays = encode_targets(targets, layout)
            arrays |= encode_turns(unit)
            encoded.append(
                (attributes, arrays, {name: encode_chunk(array) for name, array in arrays.items() if array.size})
            )
        return encoded

    def encode_checked() -> None:
        for unit in units:
            empty: dict[str, Any] = {"skipped": {}, "statistics": {}, "notes": {}}
            encode_files(unit, version, unit="000000-000000", attempt="", **empty)

    encoded = encode_only()

    def decode() -> None:
        for attributes, arrays, chunks in encoded:
            found = {
                name: decode_chunk(chunks[name], array.dtype, array.shape) if array.size else array
                for name, array in arrays.items()
            }
            version.decode(attributes, found)

    return {
        "encode": rate(positions, encode_only, time.process_time, runs),
        "encode_with_checks_and_digests": rate(positions, encode_checked, time.process_time, runs),
        "decode": rate(positions, decode, time.process_time, runs),
    }


def reading_facts(location: Path, samples: list[SampleTargets], runs: int) -> dict[str, float]:
    """Reading everything from disk with every check, and serving samples from decoded units."""
    positions = sum(len(sample.targets) for sample in samples)

    def read_all() -> None:
        cache = open_cache(location, memory_budget=0)
        for name in cache.units():
            cache.read_unit(name)

    cache = open_cache(location, memory_budget=2**34)
    order = [samples[index].key for index in np.random.default_rng(0).permutation(len(samples))]
    for key in order:
        cache[key]
    seconds = []
    for key in order:
        start = time.perf_counter()
        cache[key]
        seconds.append(time.perf_counter() - start)
    open_seconds = []
    for _ in range(20):
        start = time.perf_counter()
        open_cache(location)
        open_seconds.append(time.perf_counter() - start)
    return {
        "read_whole_cache": rate(positions, read_all, time.perf_counter, runs),
        "sample_from_decoded_unit_us": statistics.median(seconds) * 1e6,
        "sample_from_decoded_unit_p99_us": float(np.quantile(seconds, 0.99)) * 1e6,
        "open_ms": statistics.median(open_seconds) * 1e3,
    }


def _units(samples: list[SampleTargets], unit_positions: int) -> Iterator[list[SampleTargets]]:
    unit: list[SampleTargets] = []
    for sample in samples:
        unit.append(sample)
        if sum(len(item.targets) for item in unit) >= unit_positions:
            yield unit
            unit = []
    if unit:
        yield unit


def main() -> None:
    """Write a cache of the saved targets, measure it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=Path, help="kind top_k: the file that benchmarks.storage_model saved")
    parser.add_argument("--exact", type=Path, help="kind exact: the directory of a causal language model")
    parser.add_argument("--text", type=Path, help="kind exact: the text that the model reads")
    parser.add_argument("--width", type=int, help="kind exact: numbers in a state; default: the model's own")
    parser.add_argument("--answer", type=int, default=40, help="positions of an answer")
    parser.add_argument("--unit-positions", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if (options.targets is None) == (options.exact is None or options.text is None):
        parser.error("give --targets FILE, or --exact MODEL_DIRECTORY --text TEXT_FILE")
    if options.exact is not None:
        facts = codec_facts(widened(real_states(options.exact, options.text, options.unit_positions), options.width))
        print(json.dumps(facts, indent=2) if options.json else _text({"exact": facts}))
        return
    samples, whole = load_samples(options.targets, options.answer)
    positions = len(samples) * options.answer
    with tempfile.TemporaryDirectory() as directory:
        location = Path(directory, "cache")
        writer, seconds = write_cache(location, samples, int(whole["ids"].max()) + 1, options.unit_positions)
        written = positions / seconds
        facts = {
            "model_loss_nats": float(whole["loss"]),
            "size": size_facts(location, whole, positions),
            "error": error_facts(open_cache(location), samples),
            "positions_per_second": {
                **speed_facts(samples, writer.version, options.unit_positions, options.runs),
                "write_to_disk": written,
            },
            "reading": reading_facts(location, samples, options.runs),
        }
    print(json.dumps(facts, indent=2) if options.json else _text(facts))


def _text(facts: dict[str, Any]) -> str:
    lines = []
    for group, values in facts.items():
        if not isinstance(values, dict):
            lines.append(f"{group:<34}{values:12,.3f}")
            continue
        lines.append(group)
        for name, value in values.items():
            for inner, number in value.items() if isinstance(value, dict) else [(name, value)]:
                shown = f"{number:,.3g}" if 0 < abs(number) < 0.1 else f"{number:,.2f}"
                lines.append(f"  {inner:<32}{shown:>14}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
