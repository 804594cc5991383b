"""How a student of `benchmarks.regimes` does on the test rows: one number per row and metric, so that runs can be paired.

test = TestRows(plan, longest=32)     # plan: on the exact cache, with the test rows as validation
rows = test.score(model)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstsight.demo.synth.captions import wordings
from firstsight.demo.synth.writing import DESCRIPTION, descriptions
from firstsight.generation import generate_answers
from firstsight.models.loading import backbone_states
from firstsight.prompting import Prompter
from phase2_student.evaluation.metrics.answer_metrics import exact_match
from phase2_student.training.prepare import Plan

# N answer positions of a batch, S shared ids

_BINS = 10
"""Number of bins of confidence, for the calibration error."""
_BATCH = 35


@dataclass(kw_only=True)
class RowScores:
    """One entry per test row."""

    right: list[int]
    """1: the greedy answer is the true one, or one of the valid ones."""
    nll: list[float]
    """NLL of the true answer, nats per token, end of turn included."""
    kl: list[float]
    """KL(teacher || model) at T = 1 along the true answer, nats per token."""
    kl_truth: list[float] | None = None
    """KL(truth || model), nats per token, if many answers are valid: how far the NLL is above the lowest possible."""
    calibration: float | None = None
    """Mean distance between the probability that the model gives to its most likely token and the true one, in ten bins."""

    def as_json(self) -> dict[str, Any]:
        """The scores for a line of results."""
        rounded = {name: [round(value, 4) for value in getattr(self, name) or []] for name in ("nll", "kl", "kl_truth")}
        found = {"right": "".join(map(str, self.right)), **rounded, "calibration": self.calibration}
        return {name: value for name, value in found.items() if value not in (None, [])}


@dataclass(frozen=True)
class NextTokens:
    """The true distribution of the next token at one position: ids and their probabilities."""

    ids: list[int]
    shares: list[float]


def true_next_tokens(answers: Sequence[tuple[Sequence[int], float]], path: Sequence[int]) -> list[NextTokens]:
    """The true distribution of each token of an answer, given those before it.

    Args:
        answers: token ids of every valid answer, and how likely it is.
        path: token ids of one of them.
    """
    found, left = [], list(answers)
    for place, token in enumerate(path):
        shares: dict[int, float] = {}
        for ids, share in left:
            shares[ids[place]] = shares.get(ids[place], 0.0) + share
        total = sum(shares.values())
        found.append(NextTokens(list(shares), [share / total for share in shares.values()]))
        left = [(ids, share) for ids, share in left if ids[place] == token]
    return found


class TestRows:
    """The test rows of a regime, read once for all of its students.

    Args:
        plan: a plan on the exact cache; its validation rows are the test rows.
        longest: maximum tokens of an answer.
        seed: seed of the data.
    """

    __test__ = False  # not a test, in spite of its name

    def __init__(self, plan: Plan, *, longest: int, seed: int) -> None:
        self.prompter: Prompter = plan.source.prompter
        self.longest = longest
        samples = [sample for _, sample in plan.validation.samples]
        self.valid = [{sample.answer or "": 1.0} for sample in samples]
        complete, collate = plan.source.completion(torch.device("cpu")), plan.source.collator()
        starts = range(0, len(samples), _BATCH)
        data = plan.validation
        self.batches = [complete(collate([data[i] for i in range(s, min(s + _BATCH, len(data)))])) for s in starts]
        self.prompts = [[self.prompter.encode(sample, []) for sample in samples[s : s + _BATCH]] for s in starts]
        self.truth: list[NextTokens] | None = None
        if samples[0].category == DESCRIPTION:
            numbers = {sample.id: place for place, sample in enumerate(samples)}
            last = 1 + max(int(name.rpartition("-")[2]) for name in numbers)
            for question in descriptions(seed, "validation", last):
                if question.name in numbers:
                    self.valid[numbers[question.name]] = wordings(question.clip)
            self.truth = []
            for sample, answers in zip(samples, self.valid, strict=True):
                known = {text: self.prompter.answer_ids(text) for text in answers}
                pairs = [(ids, answers[text]) for text, ids in known.items()]
                self.truth += true_next_tokens(pairs, known[sample.answer or ""])

    @torch.inference_mode()
    def score(self, model: Any) -> RowScores:
        """Score a model in eval mode; the teacher is asked with the student's prompts as well."""
        right: list[int] = []
        for prompts in self.prompts:
            answers = generate_answers(model, self.prompter, prompts, max_new_tokens=self.longest)
            texts = [self.prompter.answer_text(ids) for ids in answers]
            valid = self.valid[len(right) : len(right) + len(texts)]
            right += [
                int(any(exact_match(text, truth) for truth in of_row))
                for text, of_row in zip(texts, valid, strict=True)
            ]
        head_VD = model.get_output_embeddings().weight.float()
        nll, kl, kl_truth, sure, true_of_sure = [], [], [], [], []
        begin = 0
        for batch in self.batches:
            states_ND = backbone_states(model, batch.inputs, batch.answer_rows, batch.answer_columns)
            logits_NV = torch.nn.functional.linear(states_ND.float(), head_VD)
            log_q_NV = logits_NV.log_softmax(dim=1)
            targets = batch.targets
            log_p_NS = targets.head.log_probabilities(targets.states_ND)
            log_q_NS = logits_NV[:, targets.head.student_ids_S].log_softmax(dim=1)
            count = len(batch.names)
            nll += _means(-log_q_NV.gather(1, targets.target_ids_N[:, None])[:, 0], batch.answer_rows, count)
            kl += _means((log_p_NS.exp() * (log_p_NS - log_q_NS)).sum(dim=1), batch.answer_rows, count)
            if self.truth is not None:
                truth = self.truth[begin : begin + len(log_q_NV)]
                begin += len(truth)
                kl_truth += _means(_distances(truth, log_q_NV), batch.answer_rows, count)
                top = log_q_NV.max(dim=1)
                sure += top.values.exp().tolist()
                true_of_sure += [
                    dict(zip(each.ids, each.shares, strict=True)).get(token, 0.0)
                    for each, token in zip(truth, top.indices.tolist(), strict=True)
                ]
        return RowScores(
            right=right,
            nll=nll,
            kl=kl,
            kl_truth=kl_truth or None,
            calibration=calibration_error(sure, true_of_sure) if sure else None,
        )


def calibration_error(sure: Sequence[float], true: Sequence[float]) -> float:
    """Expected calibration error against known probabilities.

    Args:
        sure: the probability that a model gives to its most likely token.
        true: that token's true probability.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), with the true probability in place of a hit.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(_BINS)]
    for pair in zip(sure, true, strict=True):
        bins[min(_BINS - 1, int(pair[0] * _BINS))].append(pair)
    return sum(abs(sum(q - p for q, p in part)) for part in bins) / len(sure)


def _distances(truth: Sequence[NextTokens], log_q_NV: Tensor) -> Tensor:
    """KL(truth || model) of every position."""
    rows = torch.tensor([row for row, each in enumerate(truth) for _ in each.ids])
    ids = torch.tensor([token for each in truth for token in each.ids])
    p = torch.tensor([share for each in truth for share in each.shares])
    return torch.zeros(len(truth)).index_add(0, rows, p * (p.log() - log_q_NV[rows, ids]))


def _means(values_N: Tensor, rows_N: Tensor, count: int) -> list[float]:
    """Per row, over its positions."""
    sums = torch.zeros(count).index_add(0, rows_N, values_N.float())
    means: list[float] = (sums / torch.bincount(rows_N, minlength=count)).tolist()
    return means
