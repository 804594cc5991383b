"""Teacher and students side by side on held-out samples: answers, speed, memory, distance to the teacher.

    evaluation = evaluate(recipe, parse_candidates(recipe, ["teacher", "base", "student"]))

The result holds every sample of every model; what `summary.py` shows is computed from these records.
"""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from firstsight.errors import DataError, ModelError
from firstsight.generation import generate_answers
from firstsight.models import (
    backbone_states,
    default_device,
    load_processor,
    load_student,
    load_teacher,
    resolve_directory,
)
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.samples import Sample, load_samples
from phase2_student.dataset import Collator, DistillationDataset
from phase2_student.loss import AnswerTargets, distillation_loss
from phase2_student.memory import PeakMemory
from storage.errors import CacheError
from storage.reader import open_cache

WARM_UP = 2
"""Untimed answers before the timed ones."""
TIMED = 16
"""Answers timed at batch 1."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to evaluate."""

    name: str
    role: Literal["teacher", "student"]
    directory: Path


def parse_candidates(recipe: Recipe, names: Sequence[str]) -> list[Candidate]:
    """`teacher`, `base`, `student` or `NAME=DIR` to directories; DIR is relative to the working directory.

    Raises:
        ModelError: a directory that is not there, or a name that is not known.
    """
    candidates = []
    for text in names:
        name, equals, path = text.partition("=")
        if equals:
            directory = Path(path)
        elif name == "teacher":
            directory = resolve_directory(recipe, recipe.teacher)
        elif name == "base":
            directory = resolve_directory(recipe, recipe.student)
        elif name == "student":
            directory = recipe.output_dir / "best"
        else:
            raise ModelError(f"--model {text}: expected teacher, base, student or NAME=DIR")
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"--model {text}: {directory} has no config.json; train the student first, or give its directory"
            )
        role: Literal["teacher", "student"] = "teacher" if name == "teacher" and not equals else "student"
        candidates.append(Candidate(name=name, role=role, directory=directory))
    return candidates


def evaluate(
    recipe: Recipe,
    candidates: Sequence[Candidate],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure each candidate on the validation file, one after the other.

    Returns:
        A JSON object: data, settings, and per model its measurements and one record per sample.

    Raises:
        FirstSightError: data or models that cannot be used.
    """
    samples = load_samples(recipe.file("validation"), recipe.data_root)[:limit]
    samples = [sample for sample in samples if sample.answer is not None]
    if not samples:
        raise DataError(f"{recipe.file('validation')}: no sample has an answer to compare with")
    settings = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "warm_up": WARM_UP, "timed": TIMED}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {"file": recipe.data.validation.name, "samples": len(samples)},
        "settings": {**settings, "device": _device_name()},
        "models": [
            _evaluate_one(recipe, candidate, samples, batch_size, max_new_tokens, progress) for candidate in candidates
        ],
    }


def _evaluate_one(
    recipe: Recipe, candidate: Candidate, samples: list[Sample], batch_size: int, max_new_tokens: int, progress: bool
) -> dict[str, Any]:
    section = recipe.teacher if candidate.role == "teacher" else recipe.student
    prompter = Prompter(
        load_processor(candidate.directory, section),
        max_length=recipe.data.max_length,
        system_prompt=recipe.data.system_prompt,
    )
    with PeakMemory() as memory, _loaded(recipe, candidate) as (model, load_seconds, dtype):
        latencies = _latencies(model, prompter, samples, max_new_tokens)
        records = _answers(model, prompter, samples, batch_size, max_new_tokens, candidate.name, progress)
        if candidate.role == "student":
            _add_distance(recipe, model, prompter, samples, records, batch_size)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    for record, seconds in zip(records, latencies, strict=False):
        record["seconds"] = seconds
    return {
        "name": candidate.name,
        "role": candidate.role,
        "dtype": dtype,
        "parameters": parameters,
        "size_bytes": sum(file.stat().st_size for file in candidate.directory.glob("*.safetensors")),
        "load_seconds": load_seconds,
        "peak_memory_bytes": memory.peak_bytes,
        "samples": records,
    }


@contextmanager
def _loaded(recipe: Recipe, candidate: Candidate) -> Iterator[tuple[Any, float, str]]:
    begin = time.perf_counter()
    if candidate.role == "teacher":
        model = load_teacher(candidate.directory, recipe.teacher)
        dtype = recipe.teacher.quantization if recipe.teacher.quantization != "none" else recipe.teacher.dtype
    else:
        device = default_device()
        dtype = recipe.student.dtype if device.type == "cuda" else "float32"  # bf16 is slower than fp32 on most CPUs
        model = load_student(candidate.directory, recipe.student, dtype=getattr(torch, dtype)).to(device)
    model.eval()
    try:
        yield model, time.perf_counter() - begin, dtype
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _latencies(model: Any, prompter: Prompter, samples: Sequence[Sample], max_new_tokens: int) -> list[float]:
    """Seconds from a sample's files to its answer at batch 1, of the first `TIMED` samples, after a warm-up."""
    timed = list(samples[:TIMED])
    seconds = []
    for number, sample in enumerate([*timed[:WARM_UP], *timed]):
        begin = time.perf_counter()
        generate_answers(model, prompter, [prompter.encode(sample, [])], max_new_tokens=max_new_tokens)
        if number >= min(WARM_UP, len(timed)):
            seconds.append(time.perf_counter() - begin)
    return seconds


def _answers(
    model: Any,
    prompter: Prompter,
    samples: Sequence[Sample],
    batch_size: int,
    max_new_tokens: int,
    name: str,
    progress: bool,
) -> list[dict[str, Any]]:
    records = []
    with tqdm(total=len(samples), desc=name, unit="sample", disable=not progress) as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            prompts = [prompter.encode(sample, []) for sample in batch]
            for sample, ids in zip(
                batch, generate_answers(model, prompter, prompts, max_new_tokens=max_new_tokens), strict=True
            ):
                answer = prompter.tokenizer.decode(ids, skip_special_tokens=True)
                records.append(
                    {
                        "id": sample.id,
                        "category": sample.category,
                        "environment": sample.environment,
                        "question": sample.question,
                        "truth": sample.answer,
                        "answer": answer,
                        "tokens": len(ids),
                        "exact": answer.strip() == (sample.answer or "").strip(),
                    }
                )
            bar.update(len(batch))
    return records


@torch.inference_mode()
def _add_distance(
    recipe: Recipe,
    model: Any,
    prompter: Prompter,
    samples: Sequence[Sample],
    records: list[dict[str, Any]],
    batch_size: int,
) -> None:
    """KL(teacher || student) at T = 1 from the cache, summed over each sample's answer tokens, into its record.

    The cache knows the teacher's top-k and the mass of the rest, so this is a lower bound of the full-vocabulary KL.
    """
    try:
        cache = open_cache(recipe.cache_location)
        data = DistillationDataset(samples, prompter, cache, temperature=1.0)
    except (CacheError, DataError):
        return  # an evaluation needs no cache; the summary says that the distance is not known
    by_key = {sample.key: record for sample, record in zip(samples, records, strict=True)}
    head = model.get_output_embeddings().weight
    unshared = torch.from_numpy((~cache.shared_mask()).nonzero()[0]).to(head.device)
    collator = Collator(prompter.tokenizer.pad_token_id or 0)
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        items = [data[index] for index in indices]
        batch = {name: tensor.to(head.device) for name, tensor in collator(items).items()}
        rows, columns = batch.pop("answer_rows"), batch.pop("answer_columns")
        targets = AnswerTargets(
            ids_NK=batch.pop("stored_ids"),
            log_p_NK=batch.pop("log_p"),
            log_r_N=batch.pop("log_r"),
            target_ids_N=batch.pop("target_ids"),
            soft_N=batch.pop("soft"),
            hard_N=batch.pop("hard"),
        )
        states = backbone_states(model, batch, rows, columns)
        for row, index in enumerate(indices):
            mine = rows == row
            part = AnswerTargets(**{name: value[mine] for name, value in vars(targets).items()})
            _, terms = distillation_loss(
                states[mine], head, part, unshared_ids=unshared, temperature=1.0, alpha=1.0, num_items=1
            )
            by_key[data.samples[index][0]].update(
                kl_sum=float(terms.kd), agree=int(terms.agree), soft_positions=int(terms.soft)
            )


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
