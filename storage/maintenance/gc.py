"""Garbage collection: data that no manifest can ever name."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from storage.errors import ObjectMissing
from storage.format.base import FormatVersion
from storage.head.document import ATTEMPT, HEAD, read_head_document
from storage.reader import read_root
from storage.store import open_store
from storage.store.base import Location, Store
from storage.units.attempts import SECONDS, started
from storage.units.manifest import UNITS, committed_units, read_manifest, split_attempt

ORPHAN_SECONDS = SECONDS + 24 * 3600  # a day for clocks that differ


@dataclass(frozen=True)
class Garbage:
    """One thing that can be removed."""

    path: str
    bytes: int
    reason: str


@dataclass(kw_only=True)
class GcReport:
    """What `fs-teacher gc` removed, or would remove."""

    location: str
    dry_run: bool
    removed: list[Garbage] = field(default_factory=list)
    young: list[Garbage] = field(default_factory=list)
    """Attempts without a manifest that may still be committed."""

    @property
    def bytes(self) -> int:
        """Bytes that were freed, or would be."""
        return sum(item.bytes for item in self.removed)


def collect_garbage(location: Location, *, dry_run: bool = False, now: float | None = None) -> GcReport:
    """Remove attempts that lost to another, and attempts and temporary files older than seven days.

    A writer refuses to commit an attempt older than six days, so nothing that is removed can be committed later.

    Args:
        location: a local path, an s3://, gs://, az:// address, or an open store.
        dry_run: only report.
        now: seconds since the epoch, instead of the clock.

    Raises:
        CorruptObject: the manifest of a unit is damaged; nothing is removed.
    """
    store = open_store(location)
    version = read_root(store)
    now = time.time() if now is None else now
    report = GcReport(location=store.location, dry_run=dry_run)
    attempts = [(name, *found) for name in store.names(UNITS) if (found := split_attempt(name)) is not None]
    # Attempts first, manifests second: a manifest never changes, so whoever lost by now has lost for good.
    names = set(committed_units(store)) & {unit for _, unit, _ in attempts}
    committed = {name: read_manifest(store, name, version).attempt for name in sorted(names)}
    for name, unit, attempt in attempts:
        if committed.get(unit) == attempt:
            continue
        path = f"{UNITS}/{name}"
        size = sum(store.tree(path).values())
        age = now - started(attempt)
        if unit in committed:
            report.removed.append(Garbage(path, size, f"another attempt committed unit {unit}"))
        elif age > ORPHAN_SECONDS:
            report.removed.append(Garbage(path, size, f"never committed, {age / 86400:.0f} days old"))
        else:
            report.young.append(Garbage(path, size, f"not committed, {max(0.0, age) / 3600:.1f} hours old"))
    _head_attempts(store, version, report, now)
    for path, (size, changed) in store.temporaries().items():
        if now - changed > ORPHAN_SECONDS:
            report.removed.append(Garbage(path, size, "left by an interrupted write"))
    if not dry_run:
        for item in report.removed:
            store.delete_tree(item.path)
    return report


def _head_attempts(store: Store, version: FormatVersion, report: GcReport, now: float) -> None:
    """Attempts at the head of a tail; the objects of an exact head are never garbage."""
    names = [name for name in store.names(HEAD) if ATTEMPT.fullmatch(name)]
    try:
        kept = read_head_document(store, version).prefix if names else None
    except ObjectMissing:
        kept = None
    for name in names:
        path = f"{HEAD}/{name}"
        age = now - started(name)
        size = sum(store.tree(path).values())
        if kept is not None and path != kept:
            report.removed.append(Garbage(path, size, "another attempt is the head"))
        elif kept is None and age > ORPHAN_SECONDS:
            report.removed.append(Garbage(path, size, f"never completed, {age / 86400:.0f} days old"))
        elif kept is None:
            report.young.append(Garbage(path, size, f"not completed, {max(0.0, age) / 3600:.1f} hours old"))
