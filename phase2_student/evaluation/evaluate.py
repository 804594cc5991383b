"""Teacher and students side by side on held-out samples: answers, speed, memory, distance to the teacher.

    evaluation = evaluate(recipe, parse_candidates(recipe, ["teacher", "base", "student"]), directory=Path("evaluation"))

The result holds every sample of every model; `summary.py` computes what it shows from these records. Each model's result is kept
as soon as it is complete, under a digest of its weights, the data, the settings and the device: the next call measures only the rest.
"""

from __future__ import annotations

import datetime
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from firstsight.console import Heartbeat
from firstsight.data.samples import Sample
from firstsight.errors import ModelError, RecipeError
from firstsight.generation import generate_answers
from firstsight.identity import text_digest, with_turns_of_cache
from firstsight.models.loading import weights_digest
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase2_student.evaluation.answers import answer_records
from phase2_student.evaluation.candidates import Candidate
from phase2_student.evaluation.goals import check_goals
from phase2_student.evaluation.loading import device_name, load
from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.evaluation.measure.power import EnergyMeter
from phase2_student.evaluation.measure.timing import Stopwatch, Timing, check_counts, throughput
from phase2_student.evaluation.metrics.answer_metrics import ANLS_THRESHOLD
from phase2_student.evaluation.metrics.distance import TeacherCache, add_distance
from phase2_student.evaluation.metrics.scores import RESAMPLES, grouped_scores
from phase2_student.evaluation.results import (
    AnswerRecord,
    Concurrency,
    Evaluation,
    EvaluationData,
    EvaluationSettings,
    InputSettings,
    ModelResult,
    ThroughputRun,
)
from phase2_student.evaluation.usable import usable_samples
from phase2_student.runs.files import write_json
from storage.canonical import digest_of
from storage.wording import counted

_VERSION = 7
"""Version of what is measured: a kept result of another version is not used."""
MEMORY_ANSWERS = 4
"""Number of answers at batch 1 while the peak memory is measured."""
_PACKAGES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every model is measured."""

    batch_size: int = 16
    """Samples answered at once while the answers are scored; LLM.int8 results depend on it."""
    max_new_tokens: int = 128
    """Maximum length of an answer, end of turn included."""
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        """Raise RecipeError if a number is not possible."""
        check_counts(1, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens)


def evaluate(
    recipe: Recipe,
    candidates: Sequence[Candidate],
    *,
    directory: Path | str,
    limit: int | None = None,
    settings: Settings | None = None,
    fresh: bool = False,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure each candidate on the validation file, one after the other.

    A sample with several answers is asked once for each, with the true answers before it as history. Samples without an answer give
    distance to the teacher and time, but no score.

    Args:
        recipe: says where the data and the cache are.
        candidates: the models, as `parse_candidates` returns them.
        directory: results of single models are kept in `measured/` under it.
        limit: use only the first samples, up to this number; at least 1.
        settings: how to measure; None: the defaults.
        fresh: measure again, even if a result was kept.
        progress: show progress bars.
        report: called with a line for each result that was kept.

    Raises:
        FirstSightError: data or models cannot be used, or a model does not fit into memory.
    """
    if limit is not None:
        check_counts(1, limit=limit)
    if not candidates:
        raise RecipeError("candidates: expected at least one model, as parse_candidates returns them, got none")
    directory = Path(directory)
    settings = settings or Settings()
    recipe = with_turns_of_cache(recipe)
    prompters = {(c.directory, c.section.max_pixels, c.data.system_prompt): c.prompter for c in candidates}
    samples, skipped = usable_samples(recipe, [make() for make in prompters.values()], limit=limit, progress=progress)
    asked = [each for sample in samples for each in (sample.asked() if recipe.data.turns == "all" else [sample])]
    cache = TeacherCache.of_recipe(recipe)
    shared = _shared_identity(recipe, samples, settings, cache)
    models, timed = [], False
    for candidate in candidates:
        identity = digest_of({**shared, "model": candidate.identity()})
        path = directory / "measured" / f"{identity[:16]}.json"
        result = None if fresh else _kept(path, identity)
        if result is None:
            if report is not None and not timed:
                report(_timing_text(settings.timing))
            timed = True
            try:
                result = _measure(recipe, candidate, cache, samples, asked, settings, progress)
            except torch.OutOfMemoryError:
                raise ModelError(
                    f"{candidate.name}: does not fit into the memory of {device_name()}; lower max_pixels in the recipe, or use a "
                    "larger GPU"
                ) from None
            result = result.model_copy(update={"identity": identity, "measured": _now()})
            _release_memory()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, result.to_json())
        elif report is not None:
            report(f"{candidate.name}: measured {result.measured}, kept; --fresh measures again")
        models.append(result.model_copy(update={"name": candidate.name}))
    timing = settings.timing
    return Evaluation(
        created=_now(),
        data=EvaluationData(
            file=str(recipe.source("validation")),
            samples=len(asked),
            rows=len(samples),
            answered=sum(each.answer is not None or bool(each.truths) for each in asked),
            skipped=skipped,
        ),
        settings=EvaluationSettings(
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            timed=timing.timed,
            warm_up=timing.warm_up,
            repetitions=timing.repetitions,
            batch_sizes=list(timing.batch_sizes),
            users=list(timing.users),
            requests=timing.requests,
            anls_threshold=ANLS_THRESHOLD,
            bootstrap_resamples=RESAMPLES,
            device=device_name(),
            versions={package: version(package) for package in _PACKAGES},
        ),
        goals=check_goals(models),
        models=models,
    )


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """A model's answers, with their timing and scores."""

    runs: list[ThroughputRun]
    users: dict[str, Concurrency]
    joules: float | None
    """Energy per answer."""
    records: list[AnswerRecord]
    distance_unknown: str | None


def _measure(
    recipe: Recipe,
    candidate: Candidate,
    cache: TeacherCache,
    samples: list[Sample],
    asked: list[Sample],
    settings: Settings,
    progress: bool,
) -> ModelResult:
    """Measure one model.

    It is loaded twice. Memory and load time are taken from the second time, since the first also loads libraries and reads the
    files from the disk.
    """
    prompter = candidate.prompter()
    answered = _answers(recipe, candidate, cache, prompter, samples, asked, settings, progress)
    _release_memory()
    with PeakMemory() as memory:
        loaded = load(candidate)
        for sample in asked[:MEMORY_ANSWERS]:
            _answer(loaded.model, prompter, [sample], settings.max_new_tokens)
    records = answered.records
    measured = candidate.role == "student" and not answered.distance_unknown
    return ModelResult(
        name=candidate.name,
        role=candidate.role,
        weights=weights_digest(candidate.directory),
        dtype=loaded.dtype,
        parameters=int(loaded.model.num_parameters()),
        size_bytes=sum(file.stat().st_size for file in candidate.directory.glob("*.safetensors")),
        load_seconds=loaded.seconds,
        peak_memory_bytes=memory.peak_bytes,
        throughput=throughput(answered.runs),
        throughput_runs=answered.runs,
        concurrency=answered.users,
        energy_joules_per_answer=answered.joules,
        answer_tokens=statistics.fmean(record.tokens for record in records),
        counts={
            "empty": sum(record.empty for record in records),
            "nonfinite": sum(record.nonfinite for record in records),
            "cut": sum(record.cut for record in records),
            "undecided": sum(bool(record.undecided) for record in records),
        },
        distance_unknown=answered.distance_unknown,
        distance_targets=cache.kind if measured else None,
        distance_digest=cache.digest_of(samples) if measured else None,
        preprocessing=InputSettings(
            origin=candidate.origin,
            max_pixels=candidate.section.max_pixels,
            system_prompt=candidate.data.system_prompt,
            turns=candidate.trained_turns,
            chat_template=text_digest(prompter.processor.chat_template),
        ),
        scores=grouped_scores(records),
        samples=records,
    )


def _answers(
    recipe: Recipe,
    candidate: Candidate,
    cache: TeacherCache,
    prompter: Prompter,
    samples: list[Sample],
    asked: list[Sample],
    settings: Settings,
    progress: bool,
) -> _Answered:
    """Load a model and let it answer, timed and scored; measure a student's distance to the teacher."""
    model = load(candidate).model
    timing, longest = settings.timing, settings.max_new_tokens
    answer = _Watched(partial(_answer, model, prompter), candidate.name)
    with EnergyMeter() as energy:
        watch = Stopwatch(answer, asked, timing, longest)
    metered = len(watch.latencies) * timing.repetitions + min(timing.warm_up, len(watch.latencies))
    runs, users = watch.throughput_runs(), watch.concurrency()
    try:
        records = answer_records(
            model,
            prompter,
            asked,
            batch_size=settings.batch_size,
            max_new_tokens=longest,
            root=recipe.image_root,
            label=candidate.name,
            progress=progress,
        )
        unknown = None
        if candidate.role == "student":
            unknown = add_distance(recipe, cache, model, prompter, samples, records, batch_size=settings.batch_size)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{candidate.name}: out of memory on {device_name()} with {settings.batch_size} answers at once; give a smaller "
            "--batch-size"
        ) from None
    for record, seconds in zip(records, watch.latencies, strict=False):
        record.seconds = seconds
    return _Answered(
        runs=runs,
        users=users,
        joules=None if energy.joules is None or not metered else energy.joules / metered,
        records=records,
        distance_unknown=unknown,
    )


def _timing_text(timing: Timing) -> str:
    """What is timed of each model, which takes most of the time of a small evaluation."""
    if not timing.timed:
        return "nothing is timed (--timed 0)"
    return (
        f"timed of each model: {counted(timing.timed * timing.repetitions, 'answer')} at batch 1, then at least {timing.requests:,} "
        "for each batch size and number of users; --timed 0 times nothing"
    )


class _Watched:
    """Times answers, with progress lines; how many there will be is only known while they are timed."""

    def __init__(self, answer: Callable[[Sequence[Sample], int], Any], name: str) -> None:
        self._answer, self._count = answer, 0
        self._beats = Heartbeat(None, unit="timed answer", label=name)

    def __call__(self, batch: Sequence[Sample], max_new_tokens: int) -> Any:
        found = self._answer(batch, max_new_tokens)
        self._count += len(batch)
        self._beats.beat(self._count)
        return found


def _answer(model: Any, prompter: Prompter, batch: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """Answer a batch, from the samples' files to the texts."""
    prompts = [prompter.encode(sample, []) for sample in batch]
    ids = generate_answers(model, prompter, prompts, max_new_tokens=max_new_tokens)
    return [prompter.answer_text(each) for each in ids]


def _shared_identity(
    recipe: Recipe, samples: Sequence[Sample], settings: Settings, cache: TeacherCache
) -> dict[str, object]:
    """What every result of this evaluation depends on besides the model."""
    return {
        "version": _VERSION,
        "settings": asdict(settings),
        "data": [[s.key, s.id, s.category, s.environment, s.options, s.truths] for s in samples],
        "turns": recipe.data.turns,
        "max_length": recipe.data.max_length,
        "cache": cache.digest,
        "no distance": cache.refusal(recipe),
        "device": device_name(),
        "versions": [version(package) for package in _PACKAGES],
    }


def _kept(path: Path, identity: str) -> ModelResult | None:
    try:
        result = ModelResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return result if result.identity == identity else None


def _release_memory() -> None:
    """Free the memory of the previous model, so that it does not count for the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
