"""An evaluation as numbers and as text: everything shown is computed from its per-sample records."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phase2_student.comparison import paired_bootstrap
from phase2_student.files import write_json


def write_evaluation(evaluation: dict[str, Any], directory: Path) -> Path:
    """Write `evaluation_<timestamp>.json` and `evaluation_summary.txt`; returns the JSON's path."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = evaluation["created"][:19].replace("-", "").replace(":", "")
    path = directory / f"evaluation_{stamp}.json"
    write_json(path, evaluation)
    (directory / "evaluation_summary.txt").write_text(summary_text(evaluation) + "\n", encoding="utf-8")
    return path


def accuracy(records: Sequence[dict[str, Any]]) -> float:
    """Share of exact answers."""
    return sum(bool(record["exact"]) for record in records) / len(records)


def by_category(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of exact answers per category."""
    names = sorted({str(record["category"]) for record in records})
    return {name: accuracy([r for r in records if str(r["category"]) == name]) for name in names}


def kl_to_teacher(records: Sequence[dict[str, Any]]) -> float | None:
    """Mean KL(teacher || student) per answer token in nats; None where the cache did not have the samples."""
    known = [record for record in records if "kl_sum" in record]
    positions = sum(record["soft_positions"] for record in known)
    return sum(record["kl_sum"] for record in known) / positions if positions else None


def model_row(model: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one model."""
    records = model["samples"]
    seconds = [record["seconds"] for record in records if "seconds" in record]
    tokens = sum(record["tokens"] for record in records if "seconds" in record)
    return {
        "parameters": model["parameters"],
        "size_mb": model["size_bytes"] / 1e6,
        "peak_memory_mb": None if model["peak_memory_bytes"] is None else model["peak_memory_bytes"] / 1e6,
        "latency_ms": 1e3 * statistics.median(seconds),
        "samples_per_second": len(seconds) / sum(seconds),
        "tokens_per_second": tokens / sum(seconds),
        "answer_tokens": statistics.fmean(record["tokens"] for record in records),
        "exact_match": accuracy(records),
        "kl_to_teacher": kl_to_teacher(records),
    }


_ROWS = {
    "parameters": ("parameters", "{:,.0f}"),
    "size_mb": ("weights on disk, MB", "{:,.1f}"),
    "peak_memory_mb": ("peak memory above idle, MB", "{:,.0f}"),
    "latency_ms": ("latency p50 at batch 1, ms", "{:,.1f}"),
    "samples_per_second": ("samples/s at batch 1", "{:,.2f}"),
    "tokens_per_second": ("tokens/s at batch 1", "{:,.0f}"),
    "answer_tokens": ("mean answer tokens", "{:,.1f}"),
    "kl_to_teacher": ("KL to the teacher, nats/token", "{:.4f}"),
    "exact_match": ("exact match", "{:.1%}"),
}


def summary_text(evaluation: dict[str, Any]) -> str:
    """A table, one column per model, and the paired differences between neighbouring columns."""
    models = evaluation["models"]
    rows = [model_row(model) for model in models]
    table = [["", *(f"{model['name']} ({model['dtype']})" for model in models)]]
    for key, (label, form) in _ROWS.items():
        table.append([label, *("-" if row[key] is None else form.format(row[key]) for row in rows)])
    categories = [by_category(model["samples"]) for model in models]
    for name in categories[0]:
        table.append([f"  {name}", *(f"{shares[name]:.1%}" for shares in categories)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    settings, data = evaluation["settings"], evaluation["data"]
    lines += [
        "",
        f"{data['samples']:,} samples of {data['file']} on {settings['device']}; timed at batch 1 over {settings['timed']} "
        f"answers after {settings['warm_up']} of warm-up, files to text; KL over the cached top-k and tail at T = 1.",
    ]
    lines += difference_lines(models)
    return "\n".join(lines)


def difference_lines(models: Sequence[dict[str, Any]]) -> list[str]:
    """Paired difference in exact match of each model to the one before it, with its 95 % interval."""
    lines = []
    for before, model in itertools.pairwise(models):
        first, second = ([float(r["exact"]) for r in m["samples"]] for m in (model, before))
        mean, low, high = paired_bootstrap(first, second)
        lines.append(
            f"{model['name']} - {before['name']}: {100 * mean:+.1f} points exact match, 95 % interval "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] (paired bootstrap)"
        )
    return lines
