"""Runs of one objective as one group: its seeds as mean, spread and count, and which objective came nearest to the teacher.

    groups = run_groups(runs, run_rows(runs))
    best = best_group(groups)

An objective is a kind of targets, a divergence, beta, temperature and alpha; the runs of a group also have all other settings in common,
except the seed. Groups are compared by figures that do not depend on the objective: exact match, CE, agreement and KL(teacher || student)
at T = 1 (only between groups measured on the same kind of targets). They are never compared by their losses, which are on different scales.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from firstsight.recipe import LossSection
from phase2_student.report.run_row import (
    AGREEMENT,
    CE,
    EVALUATED_KL,
    EXACT_MATCH,
    HIDDEN,
    KL,
    RunRow,
    comparable,
    is_known,
    mark_best,
    measured_on,
)
from phase2_student.runs.records import Run

_SEEDS = {"training.seed", "training.data_seed"}
_OF_TARGETS = ("targets", "tail", "cache digest", "alignment", "teacher.")
"""Prefixes of settings that, like those of `loss`, only soft targets depend on; training on hard labels alone ignores them."""
_OF_RUN = {
    "kl": "validation_kl",
    "ce": "validation_ce",
    "agreement": "validation_agreement",
    "evaluation_kl": "evaluation_kl",
    "exact_match": "exact_match",
}
"""Figures of a group, and the field of `RunRow` that each is the mean of."""
_BETTER = {"kl": -1, "ce": -1, "agreement": 1, "evaluation_kl": -1, "exact_match": 1}
"""Whether more is better (1) or less (-1)."""
_CONDITIONS = {"kl": KL, "ce": CE, "agreement": AGREEMENT, "evaluation_kl": EVALUATED_KL, "exact_match": EXACT_MATCH}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure over the seeds of a group."""

    mean: float
    spread: float | None
    """Standard deviation of the sample; None: one run."""
    count: int
    """Seeds that have the figure; several runs of one seed count as their mean."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The settings of an objective; None for one that it does not have."""

    targets: str
    """`hard`, `exact`, `online`, `top_k 64`, `tail_rank 16`."""
    divergence: str | None = None
    beta: float | None = None
    temperature: float | None = None
    alpha: float | None = None

    def text(self) -> str:
        """The objective in one line."""
        named = {"": self.divergence, "beta ": self.beta, "T ": self.temperature, "alpha ": self.alpha}
        return ", ".join(
            [self.targets, *(f"{name}{shown(value)}" for name, value in named.items() if value is not None)]
        )


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """The runs of one objective; what is not known is None. `dataclasses.asdict` makes the JSON of `fs-student compare --json`."""

    name: str
    objective: Targets
    settings: dict[str, object]
    """Other settings in which groups differ, by dotted name."""
    runs: list[str]
    """The finished runs, which the figures are computed from."""
    seeds: int
    """Number of different seeds among the finished runs."""
    unfinished: list[str]
    kl: Figure | None
    """KL(teacher || student) at T = 1, nats; this, `ce` (nats) and `agreement` (a share) are of the last validation."""
    measured_on: str
    """The kind of targets on which `kl` was measured."""
    targets_of: str
    """This and the two after it as in `RunRow`; of runs that differ in it, all values."""
    teacher: str
    validated_on: str
    ce: Figure | None
    agreement: Figure | None
    evaluation_kl: Figure | None
    evaluated_on: str | None
    """The kind of targets on which `evaluation_kl` was measured."""
    evaluated_targets: str
    """This and the next as in `RunRow`; of runs that differ in it, all values."""
    evaluated_samples: str | None
    exact_match: Figure | None
    best_in: list[str] = field(default_factory=list)
    """The fields above in which no other group is better; compared only if measured on the same samples, a KL on the same targets."""

    def mean(self, name: str) -> float | None:
        """The mean of a figure."""
        figure: Figure | None = getattr(self, name)
        return None if figure is None else figure.mean


def run_groups(runs: Sequence[Run], rows: Sequence[RunRow]) -> list[GroupRow]:
    """The groups, in the order of their first runs.

    Args:
        runs: as `read_runs` reads them.
        rows: the rows of the same runs, from `run_rows`.
    """
    members = members_of(runs)
    by_name = {row.name: row for row in rows}
    others = _others([group[0] for group in members])
    groups = [_group(group, [by_name[run.name] for run in group], others) for group in members]
    for name, sign in _BETTER.items():
        for same in comparable(groups, name, _CONDITIONS):
            mark_best(same, name, sign, GroupRow.mean)
    return groups


def members_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups: within a group, neither the validation samples nor what the weights depend on differ, except the seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        names = {*run.settings, *(f"loss.{key}" for key in LossSection.model_fields)} - _SEEDS
        if _is_hard(run):
            names = {name for name in names if not name.startswith(("loss.", *_OF_TARGETS))}
        settings = {name: run.setting(name) for name in names}
        key = json.dumps([_objective(run).text(), settings], sort_keys=True)
        found.setdefault(key, []).append(run)
    return list(found.values())


def named_members(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The groups of `members_of` with their names."""
    members = members_of(runs)
    others = _others([group[0] for group in members])
    return [(_name(group[0], others), group) for group in members]


def best_group(groups: Sequence[GroupRow]) -> tuple[GroupRow, str] | None:
    """The best objective, and the field that decides: exact match if all were evaluated, else the KL to the teacher.

    None if no field compares all objectives.
    """
    for name in ("exact_match", "evaluation_kl", "kl"):
        best = [group for group in groups if name in group.best_in]
        alike = [len(same) for same in comparable(groups, name, _CONDITIONS)] == [len(groups)]
        if best and alike and all(is_known(group.mean(name)) for group in groups):
            return best[0], name
    return None


def _is_hard(run: Run) -> bool:
    return bool(run.setting("loss.alpha") == 0)


def _objective(run: Run) -> Targets:
    if _is_hard(run):
        return Targets(targets="hard")
    kind, tail = measured_on(run), run.setting("loss.tail")
    return Targets(
        targets=f"{kind}, {tail}" if kind.startswith("top_k") and tail in ("renormalize", "none") else kind,
        divergence=run.setting("loss.divergence"),
        beta=run.setting("loss.beta"),
        temperature=run.setting("loss.temperature"),
        alpha=run.setting("loss.alpha"),
    )


def _others(firsts: Sequence[Run]) -> list[str]:
    """Settings other than the objective's in which groups differ; digests only if nothing else distinguishes two groups."""
    names = {name for run in firsts for name in run.settings} - _SEEDS

    def values(name: str) -> set[str]:
        of_targets = name.startswith(_OF_TARGETS)
        having = [run for run in firsts if not of_targets or (name in run.settings and not _is_hard(run))]
        return {json.dumps(run.setting(name), sort_keys=True) for run in having}

    beside = sorted(name for name in names if not name.startswith("loss.") and name not in ("targets", "tail"))
    differing = [name for name in beside if len(values(name)) > 1]
    told = [name for name in differing if name not in HIDDEN]
    labels = [json.dumps([_objective(run).text(), *(run.setting(name) for name in told)]) for run in firsts]
    return told if len(set(labels)) == len(labels) else differing


def _name(run: Run, others: Sequence[str]) -> str:
    told = [f"{name.rpartition('.')[2]} {shown(run.setting(name))}" for name in others if name not in HIDDEN]
    return ", ".join([_objective(run).text(), *told])


def _group(members: Sequence[Run], rows: Sequence[RunRow], others: Sequence[str]) -> GroupRow:
    finished = [row for row in rows if row.finished]
    seeds = [run.setting("training.seed") for run, row in zip(members, rows, strict=True) if row.finished]
    figures = {name: _figure(seeds, [getattr(row, of_run) for row in finished]) for name, of_run in _OF_RUN.items()}
    for name, of_run in _OF_RUN.items():
        having = [row for row in finished if getattr(row, of_run) is not None]
        if len({tuple(getattr(row, each) for each in _CONDITIONS[name]) for row in having}) > 1:
            figures[name] = None  # seeds may be evaluated on other samples, hard labels have several caches: no mean
    evaluated = [row for row in finished if row.evaluation_kl is not None]
    return GroupRow(
        name=_name(members[0], others),
        objective=_objective(members[0]),
        settings={name: members[0].setting(name) for name in others},
        runs=[row.name for row in finished],
        seeds=len(set(seeds)),
        unfinished=[row.name for row in rows if not row.finished],
        measured_on=_values(rows, "measured_on"),
        targets_of=_values(rows, "targets_of"),
        teacher=_values(rows, "teacher"),
        validated_on=_values(rows, "validated_on"),
        evaluated_on=_values(evaluated, "evaluated_on") or None,
        evaluated_targets=_values(evaluated, "evaluated_targets"),
        evaluated_samples=_values(finished, "evaluated_samples") or None,
        kl=figures["kl"],
        ce=figures["ce"],
        agreement=figures["agreement"],
        evaluation_kl=figures["evaluation_kl"],
        exact_match=figures["exact_match"],
    )


def _values(rows: Sequence[RunRow], name: str) -> str:
    return " and ".join(sorted({value for row in rows if (value := getattr(row, name))}))


def _figure(seeds: Sequence[object], values: Sequence[float | None]) -> Figure | None:
    """Mean and spread over the seeds; several runs of one seed count as one, since they repeat the same result."""
    by_seed: dict[object, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    if not by_seed:
        return None
    known = [statistics.fmean(each) for each in by_seed.values()]
    spread = statistics.stdev(known) if len(known) > 1 and all(map(is_known, known)) else None
    return Figure(mean=statistics.fmean(known), spread=spread, count=len(known))


def shown(value: object) -> str:
    """A setting as a table shows it."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
