"""The costs of the dump and the runs. Only measured figures are shown; if one was not measured, the page says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firstsight.console import time_text
from firstsight.models.gpus import bytes_text
from phase2_student.runs.lineage import CacheFacts
from phase2_student.runs.records import Run
from storage.wording import counted


def is_online(run: Run) -> bool:
    """Whether the run had the teacher in memory."""
    return bool(run.identity.get("targets") == "online")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """The cost of the dump or of a run."""

    what: str
    seconds: float | None
    """Time in seconds; None if it was not recorded."""
    passes: int | None
    """Number of samples that went through the teacher; None if it is not known."""
    note: str

    @property
    def clock(self) -> str:
        """The time in words."""
        return "not recorded" if self.seconds is None else time_text(self.seconds)


def cost_rows(runs: Sequence[Run], caches: dict[str, CacheFacts]) -> list[CostRow]:
    """One row for each cache that runs trained on, then one per run.

    Args:
        runs: as `read_runs` reads them.
        caches: the runs' caches, as `read_caches` reads them.
    """
    rows: list[CostRow] = []
    for cache in _used(runs, caches):
        status = cache.status
        size = f"{bytes_text(status.bytes)}, {status.bytes_per_position or 0:.1f} bytes per position"
        if status.head_bytes:
            size += f", and {bytes_text(status.head_bytes)} once for the head"
        note = f"{counted(status.samples, 'sample')}, {counted(status.positions, 'answer position')}; {size}"
        which = f" of {cache.name}" if len(caches) > 1 else ""
        what, passes = (f"dump{which}, once", status.samples)
        if cache.derived:
            what, passes = (f"{cache.name}, derived from an exact cache without the teacher", 0)
        rows.append(CostRow(what=what, seconds=cache.seconds, passes=passes, note=note))
    for run in runs:
        steps = counted(run.history.last_step, "step") if run.history.epochs else "no epoch finished"
        epochs = run.epochs_seen
        note = steps if epochs is None else f"{epochs:g} epoch{'' if epochs == 1 else 's'}, {steps}"
        what = f"{run.name}, teacher in memory" if is_online(run) else run.name
        passes_of_run = run.samples_seen if is_online(run) else 0
        rows.append(CostRow(what=what, seconds=run.history.seconds, passes=passes_of_run, note=note))
    return rows


def _used(runs: Sequence[Run], caches: dict[str, CacheFacts]) -> list[CacheFacts]:
    """The caches that runs without a teacher in memory name."""
    named = {run.facts.get("cache") for run in runs if not is_online(run)}
    return [cache for location, cache in caches.items() if location in named]


def cost_lines(runs: Sequence[Run], caches: dict[str, CacheFacts]) -> list[str]:
    """The costs in sentences. The arguments are those of `cost_rows`."""
    cached = [run for run in runs if not is_online(run)]
    online = [run for run in runs if is_online(run)]
    lines = []
    soft = [run for run in cached if run.key("loss.alpha") != 0 and run.history.epochs]  # hard labels need no teacher
    for location, cache in caches.items():
        mine = [run for run in soft if run.facts.get("cache") == location]
        seen = [run.samples_seen for run in mine]
        if not mine or None in seen:
            continue
        which = f"the cache {cache.name}" if len(caches) > 1 else "the cache"
        passes = (
            "which was derived without the teacher from an exact cache, whose dump is a cost of its own"
            if cache.derived
            else f"for which the teacher saw {counted(cache.status.samples, 'sample')} once"
        )
        lines.append(
            f"{_count_runs(len(mine)).capitalize()} learned from {which}, {passes}. With the teacher in memory the same steps would "
            f"have shown it {counted(sum(filter(None, seen)), 'training sample')}."
        )
    used = _used(runs, caches)
    dumps = [cache.seconds for cache in used if cache.seconds is not None and not cache.derived]
    if dumps and len(dumps) == len(used) and all(run.history.seconds for run in cached):
        total = sum(run.history.seconds or 0.0 for run in cached)
        dump = "dump" if len(dumps) == 1 else "dumps"
        lines.append(
            f"{dump.capitalize()} and {_count_runs(len(cached))} together: {time_text(sum(dumps) + total)}, {time_text(sum(dumps))} of it "
            f"for the {dump}; each further run costs only its training. These times do not include loading models."
        )
    pair = [run for run in soft if run.history.seconds]
    measured = [run for run in online if run.history.seconds]
    if measured and pair:
        ours, theirs = (sum(run.history.seconds or 0 for run in group) / len(group) for group in (pair, measured))
        lines.append(
            f"Measured: {time_text(theirs)} for a run with the teacher in memory, {time_text(ours)} for one from the cache "
            f"({theirs / ours:.2f} x)."
        )
    elif cached:
        lines.append(
            "How long a run with the teacher in memory takes is not known: none of these runs had it (see fs-student train --online)."
        )
    return lines


def _count_runs(count: int) -> str:
    numbers = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = numbers[count] if count < len(numbers) else f"{count:,}"
    return f"{text} run{'' if count == 1 else 's'}"
