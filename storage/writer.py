"""Writing a cache: create it, plan its units, commit each unit whole or not at all.

writer = create_cache("cache.zarr", spec)
writer.plan(PlannedSample(key, positions) for key, positions in samples)
for planned in writer.pending():
    with writer.unit(planned) as unit:
        for key in planned.keys:
            unit.append(SampleTargets(key=key, hard=True, targets=...))
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from storage.errors import CacheError, InvalidTargets, ObjectMissing, StaleAttempt, UnsupportedFormat, WrongTargets
from storage.failpoints import failpoint
from storage.format import format_of
from storage.format.base import MAX_UNIT_SAMPLES, TOP_K, FormatVersion
from storage.format.chunks import encode_array
from storage.format.layout import Layout
from storage.head.content import HeadContent
from storage.head.document import HEAD, read_head_document
from storage.head.writing import write_head
from storage.index import INDEX
from storage.plan import PLANS, PlannedSample, PlannedUnit, add_plan, read_plans
from storage.spec import ROOT_LIMIT, ROOT_PATH, VERSION_2_FIELDS, complete_spec, parse_root, require_same, root_document
from storage.store import open_store
from storage.store.base import Location, Store
from storage.targets import StoredSample
from storage.units.attempts import SECONDS as ATTEMPT_SECONDS
from storage.units.attempts import attempt_name
from storage.units.manifest import (
    MANIFESTS,
    UNITS,
    Manifest,
    committed_units,
    content_digest,
    group_document,
    manifest_bytes,
    manifest_path,
    read_manifest,
)
from storage.wording import counted

MAX_REASON = 500  # characters; keeps a manifest small when every sample is skipped


def create_cache(location: Location, spec: Mapping[str, Any]) -> CacheWriter:
    """Create a cache, or open an existing one of the same specification for writing.

    A new cache has the newest format version. An existing cache keeps its own, if that version can hold what the
    specification asks for and the specification states no `format_version`.

    Args:
        location: a local path, an s3://, gs://, az:// address, or an open store.
        spec: a JSON object; docs/FORMAT.md lists the fields that storage needs.

    Raises:
        SpecMismatch: a cache with another specification exists; `.differences` lists them.
        WrongTargets: a cache of the other kind exists.
        UnsupportedFormat: a cache of version 1 exists, which has no place for what is to be stored.
        InvalidSpec: a field that storage needs is missing or impossible.
        CacheError: the place is not empty and holds something else than a cache.
    """
    complete = complete_spec(spec)
    store = open_store(location)
    try:
        found = parse_root(store.read(ROOT_PATH, limit=ROOT_LIMIT), store.location)
        complete = _in_version_of(found, spec, complete, store.location)
    except ObjectMissing:
        _check_place(store)
        for group in (PLANS, MANIFESTS, UNITS, INDEX):
            store.create(f"{group}/{ROOT_PATH}", group_document({}))
        store.create(ROOT_PATH, root_document(complete))
        found = parse_root(store.read(ROOT_PATH, limit=ROOT_LIMIT), store.location)
    wanted = format_of(complete)
    if found.kind != wanted.kind:
        raise WrongTargets(
            f"{store.location} holds {found.kind} targets ({found.describe()}), the request is for {wanted.kind} targets "
            f"({wanted.describe()}); use another cache path, or cache.targets: {found.kind}"
        )
    require_same(found.spec, complete, store.location)
    return CacheWriter(store, found)


def _check_place(store: Store) -> None:
    """CacheError: something else is where a cache is to be created. What a creation that was cut off left is no obstacle."""
    ours = {PLANS, MANIFESTS, UNITS, INDEX, HEAD, ROOT_PATH}
    if foreign := [name for name in store.names("") if name not in ours]:
        raise CacheError(
            f"{store.location} is not a cache, and not empty: it holds {foreign[0]}{', ...' if foreign[1:] else ''}; give cache.path a "
            "place of its own"
        )


def _in_version_of(
    found: FormatVersion, spec: Mapping[str, Any], complete: dict[str, Any], location: str
) -> dict[str, Any]:
    """The complete specification in the format version of the existing cache; UnsupportedFormat."""
    if found.number >= complete["format_version"]:
        return complete
    newer = [name for name in VERSION_2_FIELDS if name in complete]
    if newer or "format_version" in spec:
        asked = f"{newer[0]} = {complete[newer[0]]!r}" if newer else f"format version {complete['format_version']}"
        raise UnsupportedFormat(
            f"{location} is a cache of format version {found.number}, which has no place for {asked}; use another cache "
            f"path, or the settings that this cache was made with"
        )
    return complete_spec(spec, found.number)


class CacheWriter:
    """Plans units and commits them; any number of processes may write one cache at a time."""

    def __init__(self, store: Store, version: FormatVersion) -> None:
        self.store = store
        self.version = version
        self.head: str | None = None
        """The digest of the cache's head once this writer knows it; `write_head` makes it known."""

    @property
    def spec(self) -> dict[str, Any]:
        """The specification of the cache."""
        return self.version.spec

    @property
    def layout(self) -> Layout:
        """What the arrays of a cache of kind top_k depend on; UnsupportedFormat for another kind."""
        layout = self.version.layout
        if not isinstance(layout, Layout):
            raise UnsupportedFormat(f"{self.store.location} holds {self.version.kind} targets, not {TOP_K}")
        return layout

    def plan(self, samples: Iterable[PlannedSample], *, unit_positions: int = 4096, retry_skipped: bool = False) -> int:
        """Plan the samples that no plan has yet, in the given order. Returns how many this call added.

        Args:
            samples: keys and numbers of answer positions.
            unit_positions: a unit closes when it has reached this many positions.
            retry_skipped: also plan samples again that every unit which has them skipped. Not in a cache of version 1.

        If several planners run at once, exactly one of them adds a sample.

        Raises:
            UnsupportedFormat: `retry_skipped` in a cache whose version plans every key once.
        """
        if not retry_skipped:
            return add_plan(self.store, samples, unit_positions)
        if not self.version.replans_skipped:
            raise UnsupportedFormat(
                f"{self.store.location} is of format version {self.version.number}, in which a skipped sample is never "
                "tried again; dump to another cache path"
            )
        committed = set(committed_units(self.store))

        def skipped_by(unit: PlannedUnit) -> Collection[str]:
            return read_manifest(self.store, unit.name, self.version).skipped if unit.name in committed else ()

        return add_plan(self.store, samples, unit_positions, skipped_by)

    def write_head(self, content: HeadContent, *, first: int = 0) -> str:
        """Write the head of a cache of kind exact, or of one with a tail rank, before any unit is committed.

        Any number of workers may do so at once. Returns the digest of the cache's head; see `storage.head.writing.write_head`.
        """
        self.head = write_head(self.store, self.version, content, first=first)
        return self.head

    def adopt_head(self) -> bool:
        """Use the head that the cache has. Returns whether it has one. CorruptObject: its document is damaged."""
        try:
            self.head = read_head_document(self.store, self.version).digest
        except ObjectMissing:
            return False
        return True

    def units(self) -> list[PlannedUnit]:
        """All planned units, in the order of the plans."""
        return [unit for units in read_plans(self.store) for unit in units]

    def pending(self) -> list[PlannedUnit]:
        """The planned units that are not committed yet."""
        committed = set(committed_units(self.store))
        return [unit for unit in self.units() if unit.name not in committed]

    def is_committed(self, unit_name: str) -> bool:
        """Whether the unit is committed now; asks the store again, which costs one look-up."""
        return self.store.size(manifest_path(unit_name)) is not None

    @contextmanager
    def unit(self, unit: PlannedUnit) -> Iterator[UnitWriter]:
        """Collect the samples of a unit and commit them when the block ends; an exception commits nothing.

        Raises:
            InvalidTargets: a sample breaks a rule, is not in the unit, or is missing at the end.
            StoreError: the store refused a write, as on a full disk; nothing is committed.
        """
        writer = UnitWriter(self, unit)
        yield writer
        writer.commit()


class UnitWriter:
    """Collects the samples of one unit in memory."""

    def __init__(self, cache: CacheWriter, unit: PlannedUnit) -> None:
        self.statistics: dict[str, float] = {}
        """Sums that add up over units; a name -> a finite number."""
        self.notes: dict[str, Any] = {}
        """What a reader of the unit should know: JSON values."""
        self.won: bool | None = None
        """After the block: whether our attempt is the committed one, or another process was first."""
        self._cache = cache
        self._unit = unit
        self._keys = unit.keys
        self._expected = frozenset(self._keys)
        self._samples: dict[str, StoredSample] = {}
        self._skipped: dict[str, str] = {}

    def append(self, sample: StoredSample) -> None:
        """Add one sample of the unit; its arrays are copied. Their values are checked when the block ends."""
        self._claim(sample.key)
        self._samples[sample.key] = self._cache.version.checked(sample)

    def skip(self, key: str, reason: str) -> None:
        """Record that a sample of the unit has no targets, and why."""
        self._claim(key)
        self._skipped[key] = str(reason)[:MAX_REASON]

    def commit(self) -> None:
        """Check, encode, write and commit; called by the end of the `unit` block."""
        unit, version, store = self._unit, self._cache.version, self._cache.store
        missing = [key for key in self._keys if key not in self._samples and key not in self._skipped]
        if missing:
            raise InvalidTargets(
                f"unit {unit.name}: {len(missing)} of {counted(len(self._keys), 'sample')} were neither appended nor skipped, "
                f"the first is {missing[0]}; nothing was committed"
            )
        attempt, started = attempt_name(), time.time()
        samples = [self._samples[key] for key in self._keys if key in self._samples]
        values = sum(len(sample.targets) for sample in samples) * version.values_per_position()
        if values > version.max_values or len(samples) > MAX_UNIT_SAMPLES:
            raise InvalidTargets(
                f"unit {unit.name}: {counted(values, 'stored entry', 'stored entries')} of {counted(len(samples), 'sample')}; a unit holds "
                f"at most {version.max_values:,} of {MAX_UNIT_SAMPLES:,}; plan with fewer unit_positions"
            )
        manifest, files = encode_files(
            samples,
            version,
            unit=unit.name,
            attempt=attempt,
            skipped=self._skipped,
            statistics=_sums(self.statistics, unit.name),
            notes=self.notes,
            head=self._head(),
        )
        try:
            store.write_tree(manifest.prefix, files)
        except CacheError:
            store.delete_tree(manifest.prefix)
            if not self._cache.is_committed(unit.name):
                raise
            self.won = False  # another process committed the unit, and gc took our attempt while we wrote it
            return
        if time.time() - started > ATTEMPT_SECONDS:
            raise StaleAttempt(
                f"unit {unit.name}: writing took more than {ATTEMPT_SECONDS // 86400} days; gc may have removed "
                "its data, so it is not committed; dump the unit again"
            )
        store.create(manifest_path(unit.name), manifest_bytes(manifest, version))
        failpoint("commit:created")
        self.won = self._committed_attempt() == attempt
        if not self.won:
            store.delete_tree(manifest.prefix)

    def _head(self) -> str | None:
        """The digest of the cache's head, which is written before any unit; InvalidTargets if it is not this writer's."""
        cache = self._cache
        if cache.version.head is None:
            return None
        if cache.head is None:
            raise InvalidTargets(f"unit {self._unit.name}: write the head before the first unit; nothing was committed")
        found = read_head_document(cache.store, cache.version).digest
        if found != cache.head:
            raise InvalidTargets(
                f"unit {self._unit.name}: the cache's head is {found[:12]}, this writer's is {cache.head[:12]}; nothing "
                "was committed; use another cache path"
            )
        return found

    def _committed_attempt(self) -> str:
        """Read the manifest back: the attempt that it names is the committed one, whatever the request itself answered."""
        cache = self._cache
        return read_manifest(cache.store, self._unit.name, cache.version).attempt

    def _claim(self, key: str) -> None:
        if key not in self._expected:
            raise InvalidTargets(f"unit {self._unit.name} has no sample {key}; append the keys of the planned unit")
        if key in self._samples or key in self._skipped:
            raise InvalidTargets(f"unit {self._unit.name}: sample {key} is already appended or skipped")


def encode_files(
    samples: Sequence[StoredSample],
    version: FormatVersion,
    *,
    unit: str,
    attempt: str,
    skipped: dict[str, str],
    statistics: dict[str, float],
    notes: dict[str, Any],
    head: str | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """The objects of a unit as bytes by path below the attempt, and the manifest that describes them.

    InvalidTargets if a sample breaks a rule of the format.
    """
    encoded = version.encode(samples)
    files = {"zarr.json": group_document(encoded.attributes)}
    for name, array in encoded.arrays.items():
        files[f"{name}/zarr.json"] = version.table.document(name, array.dtype.name, array.shape)
        chunks = encode_array(array, version.table.arrays[name].chunk_shape(array.shape))
        files |= {f"{name}/{path}": data for path, data in chunks.items()}
    manifest = Manifest(
        unit=unit,
        attempt=attempt,
        spec_digest=version.spec_digest,
        **vars(encoded.counts),
        skipped=skipped,
        statistics=statistics,
        notes=notes,
        attributes=encoded.attributes,
        arrays={name: (array.dtype.name, array.shape) for name, array in encoded.arrays.items()},
        objects={path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()},
        content_digest=content_digest(encoded.arrays),
        head=head,
    )
    return manifest, files


def _sums(statistics: Mapping[str, float], unit: str) -> dict[str, float]:
    sums = {str(name): float(value) for name, value in statistics.items()}
    for name, value in sums.items():
        if not math.isfinite(value):
            raise InvalidTargets(f"unit {unit}: statistic {name} is {value}; a sum must be finite")
    return sums
