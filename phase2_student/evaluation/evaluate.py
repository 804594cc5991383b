"""Teacher and students side by side on held-out samples: answers, speed, memory, distance to the teacher.

    evaluation = evaluate(recipe, parse_candidates(recipe, ["teacher", "base", "student"]), directory=Path("evaluation"))

The result holds every sample of every model; what `summary.py` shows is computed from these records. Each model's result is kept
as soon as it is whole, under a digest of its weights, the data, the settings and the device: the next call goes on with the rest.
"""

from __future__ import annotations

import datetime
import gc
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from firstsight.data.samples import Sample, load_samples
from firstsight.errors import DataError, ModelError
from firstsight.generation import generate_answers
from firstsight.models import weights_digest
from firstsight.pair import load_prompter
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase2_student.evaluation.answer_metrics import ANLS_THRESHOLD
from phase2_student.evaluation.candidates import Candidate, load
from phase2_student.evaluation.distance import add_distance, cache_digest
from phase2_student.evaluation.goals import targets
from phase2_student.evaluation.memory import PeakMemory
from phase2_student.evaluation.power import EnergyMeter
from phase2_student.evaluation.records import answer_records
from phase2_student.evaluation.scores import RESAMPLES, score_groups
from phase2_student.evaluation.timing import Stopwatch, Timing, throughput
from phase2_student.runs.files import write_json
from storage.canonical import digest_of

_VERSION = 2
"""Of what is measured: a kept result of another version is not used."""
MEMORY_ANSWERS = 4
"""Answers at batch 1 while the memory is watched."""
_PACKAGES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every model is measured."""

    batch_size: int = 16
    """Of the answers that are scored; LLM.int8 results depend on it."""
    max_new_tokens: int = 128
    """Longest answer, end of turn included."""
    timing: Timing = field(default_factory=Timing)


def evaluate(
    recipe: Recipe,
    candidates: Sequence[Candidate],
    *,
    directory: Path,
    limit: int | None = None,
    settings: Settings | None = None,
    fresh: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure each candidate on the validation file, one after the other.

    Args:
        recipe: says where the data and the cache are.
        candidates: of `parse_candidates`.
        directory: results of single models are kept in `measured/` under it.
        limit: only the first samples that have an answer.
        settings: None: the defaults.
        fresh: measure again what is kept.
        progress: show bars.
        report: is told which results were kept.

    Returns:
        A JSON object: data, settings, targets, and per model its measurements and one record per sample.

    Raises:
        FirstSightError: data or models that cannot be used, or that do not fit into the memory.
    """
    settings = settings or Settings()
    samples = [s for s in load_samples(recipe.file("validation"), recipe.data_root) if s.answer is not None][:limit]
    if not samples:
        raise DataError(f"{recipe.file('validation')}: no sample has an answer to compare with")
    shared = _shared_identity(recipe, samples, settings)
    models = []
    for candidate in candidates:
        identity = digest_of({**shared, "model": candidate.identity()})
        path = directory / "measured" / f"{identity[:16]}.json"
        kept = None if fresh else _kept(path, identity)
        if kept is None:
            try:
                measured = _measure(recipe, candidate, samples, settings, progress)
            except torch.OutOfMemoryError:
                raise ModelError(
                    f"{candidate.name}: does not fit into the memory of {device_name()}; lower max_pixels in the recipe, or take a "
                    "larger card"
                ) from None
            kept = {**measured, "identity": identity, "measured": _now()}
            _release()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        else:
            report(f"{candidate.name}: measured {kept['measured']}, kept; --fresh measures again")
        models.append({**kept, "name": candidate.name})
    return {
        "created": _now(),
        "data": {"file": recipe.data.validation.name, "samples": len(samples)},
        "settings": {
            **{name: value for name, value in asdict(settings).items() if name != "timing"},
            **asdict(settings.timing),
            "anls_threshold": ANLS_THRESHOLD,
            "bootstrap_resamples": RESAMPLES,
            "device": device_name(),
            "versions": {package: version(package) for package in _PACKAGES},
        },
        "targets": targets(models),
        "models": models,
    }


def _measure(
    recipe: Recipe, candidate: Candidate, samples: list[Sample], settings: Settings, progress: bool
) -> dict[str, Any]:
    """Everything about one model.

    It is loaded twice, and memory and load time are those of the second time: the first one pays for what the process needs in any
    case, libraries and files among it.
    """
    prompter = load_prompter(candidate.directory, candidate.section, recipe.data)
    measured = _answers(recipe, candidate, prompter, samples, settings, progress)
    _release()
    with PeakMemory() as memory:
        loaded = load(candidate)
        for sample in samples[:MEMORY_ANSWERS]:
            _answer(loaded.model, prompter, [sample], settings.max_new_tokens)
    return {
        "name": candidate.name,
        "role": candidate.role,
        "weights": weights_digest(candidate.directory),
        "dtype": loaded.dtype,
        "parameters": int(loaded.model.num_parameters()),
        "size_bytes": sum(file.stat().st_size for file in candidate.directory.glob("*.safetensors")),
        "load_seconds": loaded.seconds,
        "peak_memory_bytes": memory.peak_bytes,
        **measured,
    }


def _answers(
    recipe: Recipe,
    candidate: Candidate,
    prompter: Prompter,
    samples: list[Sample],
    settings: Settings,
    progress: bool,
) -> dict[str, Any]:
    """How fast and how well a model answers, and how far it is from the teacher."""
    model = load(candidate).model
    timing, longest = settings.timing, settings.max_new_tokens
    with EnergyMeter() as energy:
        watch = Stopwatch(partial(_answer, model, prompter), samples, timing, longest)
    timed = len(watch.latencies) * timing.repetitions + min(timing.warm_up, len(watch.latencies))
    runs, users = watch.throughput_runs(), watch.concurrency()
    try:
        records = answer_records(
            model,
            prompter,
            samples,
            batch_size=settings.batch_size,
            max_new_tokens=longest,
            root=recipe.data_root,
            label=candidate.name,
            progress=progress,
        )
        unknown = None
        if candidate.role == "student":
            unknown = add_distance(recipe, model, prompter, samples, records, batch_size=settings.batch_size)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{candidate.name}: out of memory on {device_name()} with {settings.batch_size} answers at once; give a smaller "
            "--batch-size"
        ) from None
    for record, seconds in zip(records, watch.latencies, strict=False):
        record["seconds"] = seconds
    return {
        "throughput": throughput(runs),
        "throughput_runs": runs,
        "concurrency": users,
        "energy_joules_per_answer": None if energy.joules is None else energy.joules / timed,
        "answer_tokens": statistics.fmean(record["tokens"] for record in records),
        "counts": {name: sum(record[name] for record in records) for name in ("empty", "nonfinite", "cut")},
        "distance_unknown": unknown,
        "scores": score_groups(records),
        "samples": records,
    }


def _answer(model: Any, prompter: Prompter, batch: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """From the samples' files to the texts."""
    prompts = [prompter.encode(sample, []) for sample in batch]
    ids = generate_answers(model, prompter, prompts, max_new_tokens=max_new_tokens)
    texts: list[str] = prompter.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _shared_identity(recipe: Recipe, samples: Sequence[Sample], settings: Settings) -> dict[str, Any]:
    """What all results of one evaluation depend on besides the model."""
    return {
        "version": _VERSION,
        "settings": asdict(settings),
        "data": [[s.key, s.id, s.category, s.environment, s.options] for s in samples],
        "max_length": recipe.data.max_length,
        "system_prompt": recipe.data.system_prompt,
        "cache": cache_digest(recipe),
        "device": device_name(),
        "versions": [version(package) for package in _PACKAGES],
    }


def _kept(path: Path, identity: str) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.get("identity") == identity else None


def _release() -> None:
    """The memory of the model before, so that the next one's peak is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def device_name() -> str:
    """The GPU's name, or how many threads the CPU computes with."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
