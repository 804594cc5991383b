"""The commands of `fs-teacher` that look after a cache: status, verify, gc. They need no model and no GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from storage.wording import counted

if TYPE_CHECKING:
    from storage.maintenance.rate import DumpRate

_SHOWN = 20


@click.command()
@click.argument("cache")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def status(cache: str, as_json: bool) -> None:
    """Show how far CACHE is and what it costs.

    Units done and missing, rate and time left of the workers that are at work, samples, answer positions, stored bytes per
    position, bits per field, and the specification that every dump into this cache must match. Reads plans and manifests only.

    Example: fs-teacher status cache.zarr
    """
    from storage.maintenance.status import cache_status

    found = cache_status(cache)
    if as_json:
        _print_json(asdict(found))
        return
    share = found.committed / found.units if found.units else 1.0
    click.echo(f"{found.location}")
    click.echo(f"  targets    {found.targets} (format version {found.spec['format_version']})")
    click.echo(f"  units      {found.committed:,} of {found.units:,} committed ({share:.1%})")
    if found.rate is not None:
        click.echo(f"  rate       {_rate(found.rate)}")
    click.echo(f"  samples    {found.samples:,} of {found.planned_samples:,} stored, {len(found.skipped):,} skipped")
    click.echo(
        f"  positions  {counted(found.positions, 'answer position')}, {found.soft_positions:,} with soft targets"
    )
    per_position = f", {found.bytes_per_position:.1f} bytes per position" if found.bytes_per_position else ""
    click.echo(f"  size       {_size(found.bytes)}{per_position}")
    if found.head_bytes is not None:
        click.echo(
            f"  head       {_size(found.head_bytes)}, once for the whole cache; in all {_size(found.bytes + found.head_bytes)}"
        )
    if found.field_bits:
        click.echo("  bits per position")
        for name, bits in sorted(found.field_bits.items(), key=lambda item: -item[1]):
            click.echo(f"    {name:<15} {bits:8.2f}")
    if found.statistics:
        click.echo("  sums over all units")
        for name, value in sorted(found.statistics.items()):
            click.echo(f"    {name:<15} {value:,.6g}")
    if found.split_units:
        click.echo(f"  units with notes: {_first(found.split_units)}")
    if found.pending:
        click.echo(f"  not committed: {_first(found.pending)}")
        click.echo("  fs-teacher dump continues with them")
    for key, reason in list(found.skipped.items())[:_SHOWN]:
        click.echo(f"  skipped {key}: {reason}")
    if len(found.skipped) > _SHOWN:
        click.echo(f"  and {len(found.skipped) - _SHOWN:,} more skipped: see --json")
    click.echo("  specification")
    for line in _flat("", found.spec):
        click.echo(f"    {line}")


@click.command()
@click.argument("cache")
@click.option("--partial", is_flag=True, help="Accept planned units that are not committed: the dump still runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def verify(cache: str, partial: bool, as_json: bool) -> None:
    """Check every byte of CACHE against its digests.

    Names each bad unit and array. Exit code 0: whole and unharmed; 1: something is damaged, or planned units are
    missing (see --partial); 2: no cache could be opened.

    Example: fs-teacher verify cache.zarr
    """
    from tqdm import tqdm

    from storage.maintenance.verify import verify_cache

    with tqdm(unit=" unit", desc="verify", disable=as_json or not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_cache(cache, progress=progress)
    sound = report.ok(partial=partial)
    if as_json:
        _print_json({"ok": sound, **asdict(report)})
        sys.exit(0 if sound else 1)
    for problem in report.problems:
        unit = f"unit {problem.unit}" if problem.unit else "cache"
        array = f", array {problem.array}" if problem.array else ""
        click.echo(f"BAD {unit}{array}: {problem.message}")
    if report.missing:
        click.echo(
            f"MISSING {counted(len(report.missing), 'planned unit has', 'planned units have')} no manifest: {_first(report.missing)}; "
            "not dumped yet, or the manifest was deleted: fs-teacher dump makes it (again)"
        )
    click.echo(
        f"{counted(report.units, 'unit')}, {counted(report.samples, 'sample')}, {counted(report.positions, 'position')}, "
        f"{_size(report.bytes)} read: {'all good' if sound else counted(len(report.problems), 'problem')}"
    )
    sys.exit(0 if sound else 1)


@click.command()
@click.argument("cache")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def gc(cache: str, dry_run: bool, as_json: bool) -> None:
    """Remove data in CACHE that no manifest can ever name.

    That is: attempts at a unit or a head that another attempt committed, and attempts and temporary files of interrupted
    writers older than seven days. Safe while other processes write and read.

    Example: fs-teacher gc cache.zarr --dry-run
    """
    from storage.maintenance.gc import collect_garbage

    report = collect_garbage(cache, dry_run=dry_run)
    if as_json:
        _print_json({**asdict(report), "bytes": report.bytes})
        return
    verb = "would remove" if dry_run else "removed"
    for item in report.removed:
        click.echo(f"{verb} {item.path} ({_size(item.bytes)}): {item.reason}")
    for item in report.young:
        click.echo(f"kept {item.path} ({_size(item.bytes)}): {item.reason}, a writer may still commit it")
    click.echo(f"{verb} {counted(len(report.removed), 'object')}, {_size(report.bytes)}")


def _rate(rate: DumpRate) -> str:
    ago = timedelta(seconds=round(rate.since_commit))
    if not rate.workers:
        return f"no worker seems to be at work: the last unit was committed {ago} ago"
    if rate.samples_per_second is None or rate.seconds_left is None:
        return f"not known yet; the last unit was committed {ago} ago"
    workers = counted(rate.workers, "worker")
    return (
        f"{rate.samples_per_second:.3g} samples/s by about {workers}, ETA {timedelta(seconds=round(rate.seconds_left))}; the last "
        f"unit was committed {ago} ago"
    )


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _flat(path: str, value: Any) -> list[str]:
    """Lines `dotted.path: value` of a nested specification."""
    if isinstance(value, dict):
        lines = []
        for key, item in sorted(value.items()):
            lines += _flat(f"{path}.{key}" if path else str(key), item)
        return lines
    text = json.dumps(value, ensure_ascii=False)
    return [f"{path}: {text if len(text) <= 100 else text[:97] + '...'}"]
