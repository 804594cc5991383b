"""The closing summary of a dump: what it did and what the cache holds now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firstsight.console import time_text
from firstsight.models.gpus import bytes_text
from phase1_teacher.dump import DumpSummary
from phase1_teacher.forward.fidelity import largest_k, mean_kl, mean_mass, mean_shape_kl, report_lines
from phase1_teacher.forward.gradient import GradientReport, gradient_lines
from storage.exact import open_any_cache
from storage.format.base import EXACT
from storage.maintenance.status import cache_status
from storage.reader import Cache
from storage.wording import counted

_ENOUGH = 0.9
"""If the stored entries hold at least this mass, the shape of the rest matters little (docs/log.md, a real teacher)."""

_SHOWN = 5
"""Number of skipped samples that are named."""


def summary_text(location: str, summary: DumpSummary, training: float | None = None) -> str:
    """Summarises a dump for the terminal: this run, the cache, its mass at each node temperature, and its fidelity.

    Args:
        location: where the cache is.
        summary: what the dump returned.
        training: the recipe's temperature, shown beside those of every report; None: only those.
    """
    cache = open_any_cache(location)  # leaves the index behind, for readers that cannot write here
    status = cache_status(location)
    lines = []
    if summary.units:
        lines.append(_run_line(summary))
    if summary.split_budget is not None:
        lines.append(
            f"Only {summary.split_budget:,} tokens at a time fitted into memory, fewer than teacher.batch_tokens; the notes of "
            "these units record it"
        )
    lines.append(
        f"The cache: {counted(status.samples, 'sample')}, {counted(status.positions, 'position')}, {bytes_text(status.bytes)} "
        f"({status.bytes_per_position or 0:.1f} bytes per position), {status.targets}"
    )
    if status.head_bytes is not None:
        lines.append(f"           and its head once, {bytes_text(status.head_bytes)}")
    if status.pending:
        lines.append(f"           {len(status.pending):,} of {counted(status.units, 'unit')} not committed yet")
    sums = status.statistics
    lines.extend(_work_lines(sums))
    if isinstance(cache, Cache):
        lines.extend(_mass_lines(sums, cache.temperatures))
    lines.extend(_check_lines(sums))
    lines.extend(report_lines(sums, training))
    if summary.gradient is not None:
        lines.extend(gradient_lines(summary.gradient, largest_k(sums)))
    if training is not None:
        tail_rank = cache.tail_rank if isinstance(cache, Cache) else 0
        lines.extend(advice(sums, training, summary.gradient, exact=status.kind == EXACT, tail_rank=tail_rank))
    if status.skipped:
        lines += _skipped_lines(location, status.skipped, summary.skipped)
    return "\n".join(lines)


def _skipped_lines(location: str, skipped: Mapping[str, str], now: Sequence[str]) -> list[str]:
    """How many samples the cache lacks because they were skipped, and the first reasons, those of this dump before others."""
    reasons = list(dict.fromkeys([*now, *skipped.values()]))
    more = f"; fs-teacher status {location} lists all" if len(reasons) > _SHOWN else ""
    by = f", {len(now):,} of them by this dump" if 0 < len(now) < len(skipped) else ""
    return [
        f"Skipped:   {counted(len(skipped), 'sample')}{by}{more}",
        *(f"           {reason}" for reason in reasons[:_SHOWN]),
    ]


def advice(
    sums: Mapping[str, float], training: float, gradient: GradientReport | None, *, exact: bool, tail_rank: int = 0
) -> list[str]:
    """What follows from the report, in one sentence; none if nothing was measured.

    Args:
        sums: sums over all units.
        training: the recipe's temperature.
        gradient: the report on the gradient of the recipe's student.
        exact: the cache holds whole distributions.
        tail_rank: of the shape of the cache's tail; 0: it has none.
    """
    k = largest_k(sums)
    mass, sharp = mean_mass(sums, k, training), mean_mass(sums, k, 1.0)
    if mass is None or sharp is None:
        return []
    held = f"at T = {training:g} the {k} largest entries hold {mass:.0%}"
    if gradient is not None and training in gradient.errors:
        bucket = " with a bucket" if tail_rank else ""
        held += f" and their gradient{bucket} is off by {gradient.errors[training]:.0%}"
    if exact:
        return [f"Advice: {held}; this cache keeps the whole distribution, at any temperature"]
    if mass >= _ENOUGH:
        return [f"Advice: {held}: top_k serves this recipe"]
    if tail_rank:
        return [_shape_advice(sums, training, k, held, tail_rank)]
    if sharp >= _ENOUGH:
        return [f"Advice: {held}: train this cache at T = 1, where they hold {sharp:.0%}, or dump cache.targets: exact"]
    at_one = "" if training == 1 else f", at T = 1 {sharp:.0%}"
    return [f"Advice: {held}{at_one}: set cache.tail_rank, dump cache.targets: exact, or raise cache.top_k"]


def _shape_advice(sums: Mapping[str, float], training: float, k: int, held: str, tail_rank: int) -> str:
    """The advice for a cache with a tail that has a shape."""
    even, shaped = mean_kl(sums, k, training), mean_shape_kl(sums, training)
    if even is None or shaped is None:
        return f"Advice: {held}; this cache keeps the shape of the rest (tail_rank {tail_rank})"
    kept = f"the KL of what is read back is {shaped:.4f} nats with the shape of the rest, {even:.4f} without it"
    if shaped < even:
        return f"Advice: {held}; {kept}: train with it (loss.tail: shape, the default here)"
    return f"Advice: {held}; {kept}: train with loss.tail: bucket, or dump with a larger cache.tail_rank, or cache.targets: exact"


def _run_line(summary: DumpSummary) -> str:
    rate = summary.positions / summary.seconds
    peak = f", peak device memory {bytes_text(summary.peak_bytes)}" if summary.peak_bytes is not None else ""
    return (
        f"This run:  {counted(summary.samples, 'sample')}, {counted(summary.positions, 'position')} in {counted(summary.units, 'unit')}, "
        f"{time_text(summary.seconds)} ({rate:,.0f} positions/s, {summary.samples / summary.seconds:,.1f} samples/s), "
        f"device idle {summary.idle_share:.1%}{peak}"
    )


def _work_lines(sums: Mapping[str, float]) -> list[str]:
    if not sums.get("padded_tokens"):
        return []
    padding = 1 - sums["tokens"] / sums["padded_tokens"]
    line = f"Forward passes over {sums['tokens']:,.0f} tokens, {padding:.1%} padding"
    if sums.get("images_used"):
        passes = counted(sums["images_encoded"], "vision pass", "vision passes")
        line += f"; {passes} for {counted(sums['images_used'], 'image')} of questions"
    lines = [line]
    if sums.get("answers_generated"):
        lines.append(f"The teacher answered {counted(sums['answers_generated'], 'sample')} itself")
    return lines


def _mass_lines(sums: Mapping[str, float], temperatures: tuple[float, ...]) -> list[str]:
    """Mean mass of the stored entries and of the tail, per node temperature; mass dropped by the alignment."""
    positions = sums.get("soft_positions", 0.0)
    if not positions:
        return []
    lines = []
    for T in temperatures:
        stored, tail = sums[f"stored_mass_T{T:g}"] / positions, sums[f"tail_mass_T{T:g}"] / positions
        lines.append(f"Mean mass at T = {T:g}: stored {stored:.6f}, tail {tail:.6f}")
    lines.append(f"Mean mass on tokens the student does not have: {sums['dropped_mass'] / positions:.2e}")
    return lines


def _check_lines(sums: Mapping[str, float]) -> list[str]:
    """Agreement with the unquantised teacher; none unless it was asked for."""
    if count := sums.get("check_positions"):
        return [
            f"Against the unquantised teacher, {counted(count, 'position')}: KL {sums['check_kl'] / count:.5f} nats, "
            f"same top token {sums['check_same_top'] / count:.1%}"
        ]
    return []
