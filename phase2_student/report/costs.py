"""What the dump and the runs took: only what was measured. A figure that was not measured is missing, and the page says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phase2_student.runs.lineage import CacheFacts
from phase2_student.runs.records import Run
from storage.wording import counted


def is_online(run: Run) -> bool:
    """Whether the run had the teacher in memory."""
    return bool(run.identity.get("targets") == "online")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What the dump or a run took."""

    what: str
    seconds: float | None
    """None where it was not recorded."""
    passes: int | None
    """Samples that went through the teacher; None where it is not known."""
    note: str

    @property
    def clock(self) -> str:
        """The time in words."""
        return "not recorded" if self.seconds is None else clock(self.seconds)


def cost_rows(runs: Sequence[Run], cache: CacheFacts | None) -> list[CostRow]:
    """One row for the dump, then one per run."""
    rows: list[CostRow] = []
    if cache is not None and any(not is_online(run) for run in runs):
        status = cache.status
        size = f"{status.bytes / 1e6:,.1f} MB, {status.bytes_per_position or 0:.1f} bytes per position"
        if status.head_bytes:
            size += f", and {status.head_bytes / 1e6:,.1f} MB once for the head"
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
            f"Dump and {_count_runs(len(cached))} together: {clock(cache.seconds + total)}, {clock(cache.seconds)} of it for the "
            "dump; each further run costs its training alone. Loading of models is not in these times."
        )
    pair = [run for run in soft if run.history.seconds]
    measured = [run for run in online if run.history.seconds]
    if measured and pair:
        ours, theirs = (sum(run.history.seconds or 0 for run in group) / len(group) for group in (pair, measured))
        lines.append(
            f"Measured: {clock(theirs)} for a run with the teacher in memory, {clock(ours)} for one from the cache "
            f"({theirs / ours:.2f} x)."
        )
    elif cached:
        lines.append(
            "What a run with the teacher in memory takes is not known: none is among these runs (fs-student train --online makes one)."
        )
    return lines


def clock(seconds: float) -> str:
    """A duration in words."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count_runs(count: int) -> str:
    numbers = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    text = numbers[count] if count < len(numbers) else f"{count:,}"
    return f"{text} run{'' if count == 1 else 's'}"
