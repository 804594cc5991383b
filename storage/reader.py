"""Reading a cache: look up samples by key, or walk through its units.

cache = open_cache("cache.zarr")
targets = cache[key].targets
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.canonical import digest_of
from storage.errors import CacheMissing, CorruptIndex, MissingSample, ObjectMissing, SkippedSample, UnknownUnit
from storage.format.v1.encoding import DecodedUnit
from storage.index import (
    INDEX,
    INDEX_NAME,
    SKIPPED,
    Header,
    Index,
    IndexRows,
    build_index,
    fresh_header,
    save_index,
    state_of,
)
from storage.manifest import MANIFESTS, UNIT_NAME, Manifest, committed_units, read_manifest
from storage.mapped import map_unit
from storage.plan import PlannedUnit, read_plans
from storage.spec import ROOT_LIMIT, ROOT_PATH, Layout, layout_of, parse_root
from storage.store.base import Place, open_place
from storage.store.local import LocalPlace
from storage.targets import SampleTargets, Targets
from storage.unit_reading import corrupt, load_unit


def open_cache(location: str | Path, *, memory_budget: int = 256 * 2**20, scratch: str | Path | None = None) -> Cache:
    """Open a cache for reading, as it is now; units committed later are seen by the next opening.

    Args:
        location: a local path or an s3://, gs://, az:// address.
        memory_budget: bytes of decoded units kept in memory for random access.
        scratch: a local directory for decoded units, shared by all processes through memory maps, and for the index
            of a cache that is not local. Give one where a shuffled pass over a large cache decodes units too often.

    Raises:
        CacheMissing: no cache is there.
        CorruptObject: its root, a plan or a manifest was changed. CorruptIndex: its index was.
    """
    return Cache(open_place(location), memory_budget, Path(scratch).absolute() if scratch else None)


def read_root(place: Place) -> dict[str, Any]:
    """The specification of the cache at a place; CacheMissing, CorruptObject."""
    try:
        return parse_root(place.read(ROOT_PATH, limit=ROOT_LIMIT), place.location)
    except ObjectMissing:
        raise CacheMissing(
            f"no cache at {place.location}: {place.location}/{ROOT_PATH} is not there; "
            "check the path, or make a cache with fs-teacher dump"
        ) from None


class Cache:
    """Committed targets by sample key. Can be pickled, and used in forked and spawned worker processes."""

    def __init__(self, place: Place, memory_budget: int, scratch: Path | None) -> None:
        self.location = place.location
        self.spec = read_root(place)
        self._place = place
        self._layout = layout_of(self.spec)
        self._spec_digest = digest_of(self.spec)
        self._budget = memory_budget
        self._scratch = scratch
        self._decoded: OrderedDict[str, DecodedUnit] = OrderedDict()
        self._held = 0
        self._index = self._open_index()

    def __getstate__(self) -> tuple[str, int, Path | None]:
        return self.location, self._budget, self._scratch

    def __setstate__(self, state: tuple[str, int, Path | None]) -> None:
        location, memory_budget, scratch = state
        self.__init__(open_place(location), memory_budget, scratch)  # type: ignore[misc]

    @property
    def top_k(self) -> int:
        """Stored entries per soft position."""
        return self._layout.top_k

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The node temperatures, ascending."""
        return self._layout.temperatures

    @property
    def vocabulary_size(self) -> int:
        """Rows of the student's head."""
        return self._layout.vocabulary_size

    @property
    def digest(self) -> str:
        """The identity of specification and committed content: 64 hex digits, whoever committed it when."""
        return self._index.header.content

    def shared_mask(self) -> NDArray[np.bool_]:
        """[vocabulary_size] True where both vocabularies have the student id."""
        return self._layout.shared_mask()

    def __len__(self) -> int:
        return self._index.header.samples

    def __contains__(self, key: object) -> bool:
        entry = self._index.find(key) if isinstance(key, str) else None
        return entry is not None and entry.sample != SKIPPED

    def keys(self) -> Iterator[str]:
        """The keys of all samples that have targets, in ascending order."""
        return (key for key, entry in self._index.entries() if entry.sample != SKIPPED)

    def __getitem__(self, key: str) -> SampleTargets:
        """The targets of a sample, in arrays of its own. MissingSample, SkippedSample."""
        entry = self._index.find(key)
        if entry is None:
            raise MissingSample(
                f"{self.location} has no targets of sample {key}: it was edited since, is not planned, or its unit is "
                "not committed; run fs-teacher dump on these data"
            )
        if entry.sample == SKIPPED:
            reason = self._manifest(entry.unit).skipped.get(key, "no reason given")
            raise SkippedSample(f"sample {key} was skipped by the dump: {reason}")
        unit = self._unit(entry.unit)
        if entry.sample >= len(unit.keys) or unit.keys[entry.sample] != key:
            raise CorruptIndex(
                f"the index of {self.location} finds sample {key} at another place than unit {entry.unit} has it; "
                f"delete its {INDEX}/{INDEX_NAME}, it is rebuilt",
                object=f"{INDEX}/{INDEX_NAME}",
            )
        view = unit.sample(entry.sample)
        copies = {field: np.array(array) for field, array in vars(view.targets).items()}
        return SampleTargets(key=view.key, hard=view.hard, targets=Targets(**copies))

    def skipped(self) -> dict[str, str]:
        """The keys of the samples that the dump skipped, and why; reads every manifest if there are any."""
        if not self._index.header.skipped:
            return {}
        return {key: reason for manifest in self.manifests() for key, reason in manifest.skipped.items()}

    def statistics(self) -> dict[str, float]:
        """The statistics of all units, added up in the order of their names; reads every manifest."""
        sums: dict[str, float] = {}
        for manifest in self.manifests():
            for name, value in manifest.statistics.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def units(self) -> Iterator[str]:
        """The names of the committed units, sorted."""
        return iter(committed_units(self._place))

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of the committed units, in the order of their names."""
        return map(self._manifest, self.units())

    def read_unit(self, name: str) -> list[SampleTargets]:
        """All samples of a unit in planned order; their arrays are read-only views of the unit's."""
        unit = self._unit(name)
        return [unit.sample(index) for index in range(len(unit.keys))]

    def _manifest(self, name: str) -> Manifest:
        if not UNIT_NAME.fullmatch(name):
            raise UnknownUnit(f"{self.location} has no unit {name!r}")
        try:
            return read_manifest(self._place, name, self._layout, self._spec_digest)
        except ObjectMissing:
            raise UnknownUnit(f"{self.location} has no committed unit {name}; see fs-teacher status") from None

    def _unit(self, name: str) -> DecodedUnit:
        """A decoded unit: from memory, from the scratch directory, or from its objects."""
        unit = self._decoded.pop(name, None)
        if unit is None:
            manifest = self._manifest(name)
            if self._scratch is None:
                unit = load_unit(self._place, manifest, self._layout)
            else:
                unit = map_unit(self._scratch, manifest, lambda: load_unit(self._place, manifest, self._layout))
            if len(unit.keys) != manifest.samples:
                raise corrupt(self._place, manifest, "keys", "it has another number of samples than the manifest")
            for array in vars(unit.targets).values():
                array.flags.writeable = False
            self._held += unit.nbytes()
        self._decoded[name] = unit
        while self._held > self._budget and self._decoded:
            self._held -= self._decoded.popitem(last=False)[1].nbytes()
        return unit

    def _open_index(self) -> Index:
        """The index as it is, if it tells of all committed units; else a new one, saved where that is possible."""
        file = self._index_file()
        index = Index.open(file) if file else None
        changed = self._place.changed(MANIFESTS)
        if index is not None and index.header.spec_digest == self._spec_digest:
            if index.header.settled() and index.header.changed == changed:
                return index
            if changed is None and index.header.state == state_of(committed_units(self._place)):
                return index
        header, rows = index_rows(self._place, self._layout, self._spec_digest)
        if file and save_index(file, build_index(header, rows)):
            index = Index.open(file)
            if index is not None:
                return index
        return Index(b"".join(build_index(header, rows)), f"{self.location} (index in memory)")

    def _index_file(self) -> Path | None:
        if isinstance(self._place, LocalPlace):
            return self._place.root / INDEX / INDEX_NAME
        if self._scratch is None:
            return None
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch / f"{self._spec_digest[:16]}.{INDEX_NAME}"


def index_rows(place: Place, layout: Layout, spec_digest: str) -> tuple[Header, IndexRows]:
    """What the index of a cache holds, from its plans and manifests: its header and where each sample lies."""
    changed = place.changed(MANIFESTS)
    names = committed_units(place)
    planned = {unit.name: unit for units in read_plans(place) for unit in units}
    rows = IndexRows()
    contents: dict[str, list[Any]] = {}
    samples = skipped = 0
    for name in names:
        manifest = read_manifest(place, name, layout, spec_digest)
        _add_rows(rows, place, manifest, planned.get(name))
        contents[name] = [manifest.content_digest, sorted(manifest.skipped)]
        samples += manifest.samples
        skipped += len(manifest.skipped)
    content = digest_of([spec_digest, contents])
    return fresh_header(spec_digest, names, content, changed, samples, skipped), rows


def _add_rows(rows: IndexRows, place: Place, manifest: Manifest, planned: PlannedUnit | None) -> None:
    """Where the samples of a committed unit lie. CorruptObject if plan and manifest contradict each other."""
    keys = planned.keys if planned else ()
    kept = [key not in manifest.skipped for key in keys]
    if planned is None or sum(kept) != manifest.samples or sum(kept) + len(manifest.skipped) != len(kept):
        raise corrupt(place, manifest, "keys", "its manifest has other samples than its plan")
    numbers = itertools.count()
    rows.add(manifest.unit, keys, (next(numbers) if each else SKIPPED for each in kept))
