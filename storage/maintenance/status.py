"""How far a cache is and what it costs, from its plans and manifests alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from storage.head.document import HEAD
from storage.maintenance.rate import Commit, DumpRate, dump_rate
from storage.plan import PLANS, read_plans
from storage.reader import read_root
from storage.store import open_store
from storage.store.base import Location
from storage.units.attempts import started
from storage.units.manifest import committed_units, manifest_path, read_manifest


@dataclass(frozen=True, kw_only=True)
class CacheStatus:
    """What `fs-teacher status` shows."""

    location: str
    units: int
    """Planned units."""
    committed: int
    pending: list[str]
    """The names of the planned units that are not committed."""
    planned_samples: int
    """Each once, however often it was planned."""
    samples: int
    """Samples with targets."""
    skipped: dict[str, str]
    """Sample key -> why the dump skipped it."""
    positions: int
    """Answer positions in committed units."""
    soft_positions: int
    bytes: int
    """All bytes that committed units need: objects, manifests and their share of the plans."""
    bytes_per_position: float | None
    field_bits: dict[str, float]
    """Array name -> stored bits per answer position; `metadata`, `manifests` and `plans` beside them."""
    statistics: dict[str, float]
    """The sums of the dump, over all committed units."""
    split_units: list[str]
    """Units with notes, such as a batch that had to be split."""
    spec: dict[str, Any]
    kind: str
    """Which targets it holds: top_k or exact."""
    targets: str
    """The same in a few words, with the numbers that belong to it."""
    head_bytes: int | None
    """Bytes of the head object, as far as it is written; None: such a cache has none."""
    rate: DumpRate | None
    """How fast the active workers are, while units are missing; None: no unit is committed yet, or none is missing."""


def cache_status(location: Location) -> CacheStatus:
    """Read the plans and manifests of a cache. CacheMissing, CorruptObject."""
    store = open_store(location)
    version = read_root(store)
    present = set(committed_units(store))
    sizes: dict[str, int] = {}
    samples = positions = soft_positions = 0
    statistics: dict[str, float] = {}
    skipped: dict[str, str] = {}
    split_units = []
    commits = []
    planned = planned_samples = repeated = committed = committed_samples = 0
    pending = []
    for unit in (unit for units in read_plans(store) for unit in units):
        planned += 1
        planned_samples += len(unit)
        tried_before = skipped.keys() & set(unit.keys) if skipped and version.replans_skipped else set()
        repeated += len(tried_before)
        if unit.name not in present:
            pending.append(unit.name)
            continue
        committed += 1
        committed_samples += len(unit)
        manifest = read_manifest(store, unit.name, version)
        commits.append(
            Commit(time=started(manifest.attempt), samples=len(unit), seconds=manifest.statistics.get("seconds"))
        )
        samples += manifest.samples
        positions += manifest.positions
        soft_positions += manifest.soft_positions
        for key in tried_before:
            del skipped[key]
        skipped |= manifest.skipped
        split_units += [unit.name] if manifest.notes else []
        for name, value in manifest.statistics.items():
            statistics[name] = statistics.get(name, 0.0) + value
        for path, (size, _) in manifest.objects.items():
            name = path.split("/")[0] if not path.endswith("zarr.json") else "metadata"
            sizes[name] = sizes.get(name, 0) + size
        sizes["manifests"] = sizes.get("manifests", 0) + (store.size(manifest_path(unit.name)) or 0)
    plans = sum(store.size(f"{PLANS}/{name}") or 0 for name in store.names(PLANS))
    sizes["plans"] = round(plans * committed_samples / max(1, planned_samples))
    total = sum(sizes.values())
    return CacheStatus(
        location=store.location,
        units=planned,
        committed=committed,
        pending=pending,
        planned_samples=planned_samples - repeated,
        samples=samples,
        skipped=skipped,
        positions=positions,
        soft_positions=soft_positions,
        bytes=total,
        bytes_per_position=total / positions if positions else None,
        field_bits={name: 8 * size / positions for name, size in sorted(sizes.items())} if positions else {},
        statistics=statistics,
        split_units=split_units,
        spec=version.spec,
        kind=version.kind,
        targets=version.describe(),
        rate=dump_rate(commits, planned_samples - committed_samples, now=time.time()) if pending else None,
        head_bytes=None if version.head is None else sum(store.tree(HEAD).values()),
    )
