"""Reading a cache: look up samples by key, or walk through its units.

cache = open_cache("cache.zarr")
targets = cache[key].targets
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from storage.canonical import digest_of
from storage.errors import (
    CacheMissing,
    CorruptIndex,
    CorruptObject,
    MissingSample,
    ObjectMissing,
    SkippedSample,
    UnknownUnit,
    WrongTargets,
)
from storage.format.base import TOP_K, DecodedUnit, FormatVersion, SampleRows, TopKVersion
from storage.format.layout import Layout
from storage.head.document import HEAD_PATH
from storage.head.reading import Head
from storage.index import (
    INDEX,
    INDEX_NAME,
    SKIPPED,
    Entry,
    Header,
    Index,
    IndexRows,
    build_index,
    fresh_header,
    save_index,
    state_of,
)
from storage.plan import PlannedUnit, read_plans
from storage.spec import ROOT_LIMIT, ROOT_PATH, parse_root
from storage.store import open_store
from storage.store.base import Location, Store
from storage.targets import SampleTargets, StoredSample
from storage.units.held import Held
from storage.units.loading import corrupt, load_unit
from storage.units.manifest import MANIFESTS, UNIT_NAME, Manifest, committed_units, read_manifest
from storage.units.mapped import make_scratch, map_unit

SampleT = TypeVar("SampleT", bound=StoredSample)
_Default = TypeVar("_Default")


def open_cache(location: Location, *, memory_budget: int = 256 * 2**20, scratch: str | Path | None = None) -> Cache:
    """Open a cache for reading as it is now. Units committed later are seen when it is opened again.

    Args:
        location: a local path, an s3://, gs://, az:// address, or an open store.
        memory_budget: bytes of decoded units kept in memory for random access.
        scratch: a local directory for decoded units, shared by all processes through memory maps, and for the index
            of a cache that is not local. Give one where a shuffled pass over a large cache decodes units too often.

    Raises:
        CacheMissing: no cache was found there.
        CorruptObject: its root, a plan or a manifest was changed. CorruptIndex: its index was.
        UnsupportedFormat: it is of a format version that this program does not read.
        WrongTargets: it is of kind exact; see `storage.exact.open_exact_cache`.
    """
    return Cache(open_store(location), memory_budget, Path(scratch).absolute() if scratch else None)


def read_root(store: Store) -> FormatVersion:
    """The format version of the cache in a store, for its specification; CacheMissing, CorruptObject, UnsupportedFormat."""
    try:
        return parse_root(store.read(ROOT_PATH, limit=ROOT_LIMIT), store.location)
    except ObjectMissing:
        raise CacheMissing(
            f"no cache at {store.location}: {store.location}/{ROOT_PATH} not found; "
            "check the path, or make a cache with fs-teacher dump"
        ) from None


class CommittedCache(Mapping[str, SampleT]):
    """The committed samples of a cache by key, in ascending order of the keys, for either kind of targets.

    Can be pickled, and used in forked and spawned worker processes. Two caches are equal only if they are one object:
    compare their `digest` for their content. `items` and `values` look samples up one by one, in the order of their
    keys, which is not that of the units: to walk through a large cache, use `units` and `read_unit`.
    """

    def __init__(self, store: Store, memory_budget: int, scratch: Path | None) -> None:
        self.location = store.location
        self._store = store
        self._version = read_root(store)
        self.spec = self._version.spec
        self._budget = memory_budget
        self._scratch = scratch
        self._head: Head | None = None
        self._held = Held(memory_budget)
        self._contents: dict[str, Any] = {}  # what identifies each unit, of the manifests read so far
        self._index = self._open_index()

    def __getstate__(self) -> tuple[str, int, Path | None]:
        return self.location, self._budget, self._scratch

    def __setstate__(self, state: tuple[str, int, Path | None]) -> None:
        location, memory_budget, scratch = state
        self.__init__(open_store(location), memory_budget, scratch)  # type: ignore[misc]

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Cache {self.location}: {len(self):,} samples, {self._version.describe()}, digest {self.digest[:12]}>"

    @property
    def kind(self) -> str:
        """Which targets it holds: top_k or exact."""
        return self._version.kind

    @property
    def digest(self) -> str:
        """The identity of specification and committed content, whoever committed it and when: 64 hex digits."""
        return self._index.header.content

    def digest_of_samples(self, keys: Iterable[str]) -> str:
        """The identity of the specification and of the units that hold the given samples; other units do not change it.

        Args:
            keys: of samples in the cache; MissingSample for any other.
        """
        units = {self._entry(key).unit for key in keys}
        for name in units - self._contents.keys():
            self._manifest(name)
        return digest_of([self._version.spec_digest, {name: self._contents[name] for name in sorted(units)}])

    def __len__(self) -> int:
        return self._index.header.samples

    def __contains__(self, key: object) -> bool:
        entry = self._index.find(key)
        return entry is not None and entry.sample != SKIPPED

    def __iter__(self) -> Iterator[str]:
        """The keys of all samples that have targets, in ascending order."""
        return (key for key, entry in self._index.entries() if entry.sample != SKIPPED)

    def _entry(self, key: str) -> Entry:
        """Where a sample lies, or that it was skipped. MissingSample."""
        entry = self._index.find(key)
        if entry is None:
            raise MissingSample(
                f"{self.location} has no targets for sample {key}: it was edited since, is not planned, or its unit is "
                "not committed; run fs-teacher dump on these data"
            )
        return entry

    def _place(self, key: str) -> Entry:
        """Where a sample lies. MissingSample, SkippedSample."""
        entry = self._entry(key)
        if entry.sample == SKIPPED:
            reason = self._manifest(entry.unit).skipped.get(key, "no reason given")
            raise SkippedSample(f"sample {key} was skipped by the dump: {reason}")
        return entry

    def _check_place(self, entry: Entry, key: str, unit: SampleRows) -> None:
        """CorruptIndex where the index leads to another sample."""
        if entry.sample >= len(unit.keys) or unit.keys[entry.sample] != key:
            raise CorruptIndex(
                f"the index of {self.location} does not find sample {key} where unit {entry.unit} has it; "
                f"delete its {INDEX}/{INDEX_NAME}, and it will be rebuilt",
                object=f"{INDEX}/{INDEX_NAME}",
            )

    @overload
    def get(self, key: str, /) -> SampleT | None: ...

    @overload
    def get(self, key: str, /, default: SampleT | _Default) -> SampleT | _Default: ...

    def get(self, key: str, /, default: object = None) -> object:
        """The targets of a sample; `default` where the dump skipped it or the cache does not hold it.

        Every other error is raised, such as CorruptObject, or UnknownUnit for a unit that was removed.
        """
        try:
            return self[key]
        except MissingSample:
            return default

    def skipped(self) -> dict[str, str]:
        """The keys of the samples that the dump skipped, and why; reads every manifest if there are any."""
        if not self._index.header.skipped:
            return {}
        reasons = {
            key: (manifest.unit, reason) for manifest in self.manifests() for key, reason in manifest.skipped.items()
        }
        return {key: reason for key, (unit, reason) in reasons.items() if self._index.find(key) == Entry(unit, SKIPPED)}

    def statistics(self) -> dict[str, float]:
        """The statistics of all units, added up in the order of their names; reads every manifest."""
        sums: dict[str, float] = {}
        for manifest in self.manifests():
            for name, value in manifest.statistics.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def units(self) -> Iterator[str]:
        """The names of the committed units, sorted."""
        return iter(committed_units(self._store))

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of the committed units, in the order of their names."""
        return map(self._manifest, self.units())

    def head(self) -> Head:
        """The head, which turns what is stored into logits. Only its document is read now, its arrays when they are asked for.

        Raises:
            WrongTargets: a cache of this kind has no head.
            ObjectMissing: it is not written yet. CorruptObject: it is damaged, or not the one that the units name.
        """
        if self._version.head is None:
            raise WrongTargets(f"{self.location} holds {self._version.describe()}: such a cache has no head")
        if self._head is None:
            head = Head(self._store, self._version)
            first = next(self.units(), None)
            named = head.digest if first is None else self._manifest(first).head
            if named != head.digest:
                raise CorruptObject(
                    f"{self.location}: its units were made with the head {named}, the cache has {head.digest}; restore the first",
                    object=HEAD_PATH,
                )
            self._head = head
        return self._head

    def _manifest(self, name: str) -> Manifest:
        if not UNIT_NAME.fullmatch(name):
            raise UnknownUnit(f"{self.location} has no unit {name!r}")
        try:
            manifest = read_manifest(self._store, name, self._version)
        except ObjectMissing:
            raise UnknownUnit(f"{self.location} has no committed unit {name}; see fs-teacher status") from None
        content = manifest.content_digest
        self._contents[name] = [content, manifest.head] if self._version.names_head else content
        return manifest

    def _open_index(self) -> Index:
        """The existing index if it covers all committed units, else a new one, saved if possible."""
        file = self._index_file()
        index = Index.open(file) if file else None
        changed = self._store.changed(MANIFESTS)
        if index is not None and index.header.spec_digest == self._version.spec_digest:
            if index.header.settled() and index.header.changed == changed:
                return index
            if changed is None and index.header.state == state_of(committed_units(self._store)):
                return index
        header, rows = index_rows(self._store, self._version)
        if file and save_index(file, build_index(header, rows)):
            index = Index.open(file)
            if index is not None:
                return index
        return Index(b"".join(build_index(header, rows)), f"{self.location} (index in memory)")

    def _index_file(self) -> Path | None:
        if (file := self._store.local_file(f"{INDEX}/{INDEX_NAME}")) is not None:
            return file
        if self._scratch is None:
            return None
        make_scratch(self._scratch)
        return self._scratch / f"{self._version.spec_digest[:16]}.{INDEX_NAME}"


class Cache(CommittedCache[SampleTargets]):
    """A cache of kind top_k; see `CommittedCache`."""

    def __init__(self, store: Store, memory_budget: int, scratch: Path | None) -> None:
        super().__init__(store, memory_budget, scratch)
        if not isinstance(self._version, TopKVersion):
            raise WrongTargets(f"{self.location} holds {self.kind} targets ({self._version.describe()}), not {TOP_K}")
        self._top_k_version = self._version

    @property
    def _layout(self) -> Layout:
        return self._top_k_version.layout

    @property
    def top_k(self) -> int:
        """Stored entries per soft position."""
        return self._layout.top_k

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The node temperatures, ascending."""
        return self._layout.temperatures

    @property
    def tail_rank(self) -> int:
        """Numbers per soft position that give the shape of the tail; 0: none."""
        return self._layout.tail_rank

    @property
    def vocabulary_size(self) -> int:
        """Rows of the student's head."""
        return self._layout.vocabulary_size

    def shared_mask(self) -> NDArray[np.bool_]:
        """[vocabulary_size] True where both vocabularies have the student id."""
        return self._layout.shared_mask()

    def __getitem__(self, key: str) -> SampleTargets:
        """The targets of a sample, as copies. MissingSample, SkippedSample."""
        entry = self._place(key)
        unit = self._unit(entry.unit)
        self._check_place(entry, key, unit)
        view = unit.sample(entry.sample)
        return replace(view, targets=view.targets.copy())

    def read_unit(self, name: str) -> list[SampleTargets]:
        """All samples of a unit in planned order; their arrays are read-only views of the unit's."""
        unit = self._unit(name)
        return [unit.sample(index) for index in range(len(unit.keys))]

    def _unit(self, name: str) -> DecodedUnit:
        """A decoded unit: from memory, from the scratch directory, or from its objects."""
        return self._held.get(name, lambda: self._load(name))

    def _load(self, name: str) -> tuple[DecodedUnit, int]:
        manifest, version = self._manifest(name), self._top_k_version
        if self._scratch is None:
            unit = load_unit(self._store, manifest, version)
        else:
            unit = map_unit(self._scratch, manifest, version.targets, lambda: load_unit(self._store, manifest, version))
        if len(unit.keys) != manifest.samples:
            raise corrupt(self._store, manifest, "keys", "its number of samples is not the one in the manifest")
        for array in unit.targets.arrays().values():
            array.flags.writeable = False
        return unit, unit.nbytes()


def index_rows(store: Store, version: FormatVersion) -> tuple[Header, IndexRows]:
    """What the index of a cache holds, from its plans and manifests: its header and where each sample lies."""
    changed = store.changed(MANIFESTS)
    names = committed_units(store)
    planned = {unit.name: unit for units in read_plans(store) for unit in units}
    rows = IndexRows()
    contents: dict[str, list[Any]] = {}
    head: str | None = None
    for name in names:
        manifest = read_manifest(store, name, version)
        _add_rows(rows, store, manifest, planned.get(name))
        contents[name] = [manifest.content_digest, sorted(manifest.skipped)]
        if version.names_head:
            contents[name].append(manifest.head)
        if head not in (None, manifest.head):
            raise corrupt(
                store, manifest, "zarr.json", f"it was made with the head {manifest.head}, other units with {head}"
            )
        head = manifest.head
    samples, skipped = rows.counts()
    content = digest_of([version.spec_digest, contents])
    return fresh_header(version.spec_digest, names, content, changed, samples, skipped), rows


def _add_rows(rows: IndexRows, store: Store, manifest: Manifest, planned: PlannedUnit | None) -> None:
    """Where the samples of a committed unit lie. CorruptObject if plan and manifest contradict each other."""
    keys = planned.keys if planned else ()
    kept = [key not in manifest.skipped for key in keys]
    if planned is None or sum(kept) != manifest.samples or sum(kept) + len(manifest.skipped) != len(kept):
        raise corrupt(store, manifest, "keys", "its manifest and its plan name different samples")
    numbers = itertools.count()
    rows.add(manifest.unit, keys, (next(numbers) if each else SKIPPED for each in kept))
