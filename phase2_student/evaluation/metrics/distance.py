"""KL(teacher || student) at T = 1 from the cache, and the student's NLL of the true answers: no teacher in memory.

A top_k cache knows the teacher's top-k and the mass of the rest, so this is a lower bound of the full KL. If the cache also has the
tail's shape, it is an estimate of the full KL; from exact targets it is the full KL itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from firstsight.console import Heartbeat
from firstsight.data.samples import Sample
from firstsight.errors import AlignmentError, DataError, TargetError
from firstsight.models.loading import backbone_states
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from phase2_student.data.batch import Item
from phase2_student.data.cached import open_recipe_cache
from phase2_student.data.contract import check_made_for, stated_differences
from phase2_student.data.source import SampleDataset, TargetSource, source_at
from phase2_student.evaluation.results import AnswerRecord
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import PLAIN_KL
from storage.errors import CacheError, SpecMismatch
from storage.exact import ExactCache
from storage.reader import Cache


@dataclass(frozen=True)
class TeacherCache:
    """The recipe's cache, opened once for an evaluation."""

    cache: Cache | ExactCache | None
    """The open cache; None if there is none, since an evaluation needs no cache."""
    problem: str = ""
    """Why there is no cache."""

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self:
        """The cache of a recipe; if it cannot be read, `problem` says why, and no error is raised."""
        try:
            return cls(open_recipe_cache(recipe))
        except CacheError as error:
            return cls(None, _without_directory(recipe, error))

    @property
    def digest(self) -> str | None:
        """Digest of what is committed in the cache."""
        return None if self.cache is None else self.cache.digest

    def digest_of(self, samples: Sequence[Sample]) -> str | None:
        """Digest of the targets of those of the samples that it holds."""
        cache = self.cache
        return None if cache is None else cache.digest_of_samples(s.key for s in samples if s.key in cache)

    def refusal(self, recipe: Recipe) -> str:
        """Why no student's distance can be measured on it with this recipe; empty if nothing speaks against it."""
        if self.cache is None:
            return self.problem
        differences = stated_differences(recipe, self.cache)
        return _without_directory(recipe, SpecMismatch(self.cache.location, differences)) if differences else ""

    @property
    def kind(self) -> Literal["top_k", "tail_rank", "exact"] | None:
        """Which kind of targets the cache holds."""
        if self.cache is None:
            return None
        if isinstance(self.cache, ExactCache):
            return "exact"
        return "tail_rank" if self.cache.tail_rank else "top_k"


@torch.inference_mode()
def add_distance(
    recipe: Recipe,
    teacher: TeacherCache,
    model: Any,
    prompter: Prompter,
    samples: Sequence[Sample],
    records: Sequence[AnswerRecord],
    *,
    batch_size: int,
) -> str | None:
    """Set in each answer's record the KL and the true answer's NLL, summed over its tokens, and the number of tokens at which
    student and teacher agree on the most likely one.

    Args:
        recipe: the recipe of the evaluation.
        teacher: the recipe's cache.
        model: a student's model.
        prompter: the student's prompter.
        samples: rows of the data.
        records: one record for each of their answers (`Prompter.turn_count`), sample by sample.
        batch_size: samples at once.

    The fields are `kl_sum` and `nll_sum` (nats; None if not finite), `agree`, `soft_positions`, `hard_positions`.

    Returns:
        Why the distance is not known, or None.
    """
    if teacher.cache is None:
        return teacher.problem
    head = model.get_output_embeddings().weight
    try:
        check_made_for(recipe, teacher.cache, prompter, len(head))
        source = source_at(teacher.cache, prompter, len(head), temperature=PLAIN_KL.temperature, skip=True)
        data = _joined(source, teacher.cache, samples)
        complete = source.completion(head.device)
    except (CacheError, DataError, AlignmentError, TargetError) as error:
        return _without_directory(recipe, error)
    by_key: dict[str, list[list[AnswerRecord]]] = {}  # rows of equal content have one key: the records of each row
    rest = iter(records)
    for sample in samples:
        by_key.setdefault(sample.key, []).append([next(rest) for _ in range(prompter.turn_count(sample))])
    unshared = torch.from_numpy((~source.shared_mask()).nonzero()[0]).to(head.device)
    collator = source.collator()
    beats = Heartbeat(len(data), unit="sample", label="distance to the teacher")
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        items = list(beats.waiting(data[i] for i in indices))
        batch = complete(collator(items))
        states = backbone_states(model, batch.inputs, batch.answer_rows, batch.answer_columns)
        begin = 0
        for index, number, count in _turns(indices, items):
            mine = slice(begin, begin + count)
            begin += count
            part = batch.targets.mapped(partial(_taken, mine))
            _, terms = distillation_loss(states[mine], head, part, PLAIN_KL, unshared_ids=unshared, num_items=1)
            kl, nll, hard = float(terms.kd), float(terms.ce), int(terms.hard)
            for record in (of_row[number] for of_row in by_key[data.samples[index][0]]):
                record.kl_sum = kl if math.isfinite(kl) else None
                record.agree, record.soft_positions = int(terms.agree), int(terms.soft)
                if hard:
                    record.nll_sum, record.hard_positions = (nll if math.isfinite(nll) else None), hard
                record.nonfinite = record.nonfinite or not math.isfinite(kl)
        beats.beat(indices.stop)
    return None


def _taken(mine: slice, tensor: Tensor) -> Tensor:
    return tensor[mine]


def _turns(indices: Sequence[int], items: Sequence[Item[Any]]) -> Iterator[tuple[int, int, int]]:
    """Index of the sample, number and positions of each answer of a batch."""
    for index, item in zip(indices, items, strict=True):
        for number, count in enumerate(item.encoded.turns):
            yield index, number, count


def _without_directory(recipe: Recipe, error: Exception) -> str:
    """The message without directories of this machine, for the file of an evaluation."""
    return str(error).replace(recipe.cache_location, recipe.cache.path)


def _joined(source: TargetSource, cache: Cache | ExactCache, samples: Sequence[Sample]) -> SampleDataset:
    known = [sample for sample in samples if sample.key in cache]
    if not known:
        raise DataError(f"{cache.location} holds none of the samples")
    return source.dataset(known)
