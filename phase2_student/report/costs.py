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


def cost_rows(runs: Sequence[Run], cache: CacheFacts | None) -> list[CostRow]:
    """One row for the dump, then one per run."""
    rows: list[CostRow] = []
    if cache is not None and any(not is_online(run) for run in runs):
        status = cache.status
        size = f"{bytes_text(status.bytes)}, {status.bytes_per_position or 0:.1f} bytes per position"
        if status.head_bytes:
            size += f", and {bytes_text(status.head_bytes)} once for the head"
        note = f"{counted(status.samples, 'sample')}, {counted(status.positions, 'answer position')}; {size}"
        rows.append(CostRow(what="dump, once", seconds=cache.seconds, passes=status.samples, note=note))
    for run in runs:
        samples = run.facts.get("train_samples")
        epochs = run.history.epochs[-1]["epoch"] if run.history.epochs else None
        passes: int | None = 0
        if is_online(run):
            passes = None if samples is None or epochs is None else samples * epochs
        steps = counted(run.history.last_step, "step") if run.history.epochs else "no epoch finished"
        note = steps if epochs is None else f"{epochs} epochs, {steps}"
        what = f"{run.name}, teacher in memory" if is_online(run) else run.name
        rows.append(CostRow(what=what, seconds=run.history.seconds, passes=passes, note=note))
    return rows


def cost_lines(runs: Sequence[Run], cache: CacheFacts | None) -> list[str]:
    """The costs in sentences."""
    cached = [run for run in runs if not is_online(run)]
    online = [run for run in runs if is_online(run)]
    lines = []
    soft = [run for run in cached if run.key("loss.alpha") != 0 and run.history.epochs]  # hard labels need no teacher
    passes = [(run.facts.get("train_samples"), run.history.epochs[-1]["epoch"]) for run in soft]
    if cache is not None and passes and all(samples is not None for samples, _ in passes):
        instead = sum(samples * epochs for samples, epochs in passes)
        lines.append(
            f"{_count_runs(len(soft)).capitalize()} learned from the cache, for which the teacher saw "
            f"{counted(cache.status.samples, 'sample')} once. With the teacher in memory the same epochs would have shown it "
            f"{counted(instead, 'training sample')}."
        )
    if cache is not None and cache.seconds is not None and cached and all(run.history.seconds for run in cached):
        total = sum(run.history.seconds or 0.0 for run in cached)
        lines.append(
            f"Dump and {_count_runs(len(cached))} together: {time_text(cache.seconds + total)}, {time_text(cache.seconds)} of it for the "
            "dump; each further run costs only its training. These times do not include loading models."
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
