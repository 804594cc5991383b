"""The closing summary of a dump: what it did and what the cache holds now."""

from __future__ import annotations

from phase1_teacher.dump import DumpSummary
from storage.reader import Cache, open_cache
from storage.status import cache_status


def summary_text(location: str, summary: DumpSummary) -> str:
    """Lines for the terminal: this run, the cache, and the mean stored and tail mass at each node temperature."""
    cache = open_cache(location)
    status = cache_status(location)
    lines = []
    if summary.units:
        rate = summary.positions / summary.seconds
        lines.append(
            f"This run:  {summary.samples:,} samples, {summary.positions:,} positions in {summary.units} units, "
            f"{summary.seconds:.1f} s ({rate:,.0f} positions/s)"
        )
    lines.append(
        f"The cache: {status.samples:,} samples, {status.positions:,} positions, {status.bytes:,} bytes "
        f"({status.bytes_per_position:.1f} bytes per position), k = {cache.top_k}"
    )
    lines.extend(mass_lines(cache))
    if skipped := cache.skipped():
        lines.append(f"Skipped:   {len(skipped):,} samples; fs-teacher status {location} lists them")
    return "\n".join(lines)


def mass_lines(cache: Cache) -> list[str]:
    """Mean mass of the stored entries and of the tail, per node temperature; mass dropped by the alignment."""
    sums = cache.statistics()
    positions = sums.get("soft_positions", 0.0)
    if not positions:
        return []
    lines = []
    for T in cache.temperatures:
        stored, tail = sums[f"stored_mass_T{T:g}"] / positions, sums[f"tail_mass_T{T:g}"] / positions
        lines.append(f"Mean mass at T = {T:g}: stored {stored:.6f}, tail {tail:.6f}")
    lines.append(f"Mean mass on tokens the student does not have: {sums['dropped_mass'] / positions:.2e}")
    return lines
