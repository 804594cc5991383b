"""Reading a cache: look up samples by key, or walk through its units.

cache = open_cache("cache.zarr")
targets = cache[key].targets
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.canonical import canonical_json, digest_of
from storage.chunks import ChunkError, chunk_name, decode_chunk
from storage.encoding import DecodedUnit, DecodeError, decode_unit
from storage.errors import CacheMissing, CorruptObject, MissingSample, ObjectMissing, SkippedSample, UnknownUnit
from storage.manifest import Manifest, committed_units, read_manifest
from storage.place import Place, open_place
from storage.plan import read_plans
from storage.spec import ROOT_LIMIT, ROOT_PATH, Layout, layout_of, parse_root
from storage.targets import SampleTargets, Targets


def open_cache(location: str | Path, *, memory_budget: int = 256 * 2**20) -> Cache:
    """Open a cache for reading.

    Args:
        location: a local path or an s3://, gs://, az:// address.
        memory_budget: bytes of decoded units kept in memory for random access.

    Raises:
        CacheMissing: no cache is there.
        CorruptObject: its root was changed.
    """
    return Cache(open_place(location), memory_budget)


class Cache:
    """Committed targets by sample key."""

    def __init__(self, place: Place, memory_budget: int) -> None:
        try:
            root = place.read(ROOT_PATH, limit=ROOT_LIMIT)
        except ObjectMissing:
            raise CacheMissing(
                f"no cache at {place.location}; check the path, or make one with fs-teacher dump"
            ) from None
        self.location = place.location
        self.spec = parse_root(root, place.location)
        self._place = place
        self._layout = layout_of(self.spec)
        self._spec_digest = digest_of(self.spec)
        self._budget = memory_budget
        self._decoded: OrderedDict[str, DecodedUnit] = OrderedDict()
        self._manifests = {name: self._manifest(name) for name in committed_units(place)}
        planned = {unit.name: unit.keys for units in read_plans(place) for unit in units}
        self._places: dict[str, tuple[str, int]] = {}
        for name, manifest in self._manifests.items():
            kept = (key for key in planned[name] if key not in manifest.skipped)
            self._places.update((key, (name, index)) for index, key in enumerate(kept))

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
        units = {name: [m.content_digest, sorted(m.skipped)] for name, m in self._manifests.items()}
        return hashlib.sha256(canonical_json([self._spec_digest, units])).hexdigest()

    def shared_mask(self) -> NDArray[np.bool_]:
        """[vocabulary_size] True where both vocabularies have the student id."""
        return self._layout.shared_mask()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def keys(self) -> Iterator[str]:
        """The keys of all samples that have targets, unit by unit."""
        return iter(self._places)

    def skipped(self) -> dict[str, str]:
        """The keys of the samples that the dump skipped, and why."""
        return {key: reason for m in self._manifests.values() for key, reason in m.skipped.items()}

    def statistics(self) -> dict[str, float]:
        """The statistics of all units, added up."""
        sums: dict[str, float] = {}
        for _, manifest in sorted(self._manifests.items()):
            for name, value in manifest.statistics.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def units(self) -> Iterator[str]:
        """The names of the committed units, sorted."""
        return iter(sorted(self._manifests))

    def read_unit(self, name: str) -> list[SampleTargets]:
        """All samples of a unit in planned order; their arrays are views of the unit's."""
        unit = self._unit(name)
        return [unit.sample(index) for index in range(len(unit.keys))]

    def __getitem__(self, key: str) -> SampleTargets:
        """The targets of a sample, in arrays of its own. MissingSample, SkippedSample."""
        if key not in self._places:
            reason = self.skipped().get(key)
            if reason is not None:
                raise SkippedSample(f"sample {key} was skipped by the dump: {reason}")
            raise MissingSample(
                f"{self.location} has no targets of sample {key}: it was edited since, is not planned, or its unit is "
                "not committed; run fs-teacher dump on these data"
            )
        name, index = self._places[key]
        view = self._unit(name).sample(index)
        copies = {field: array.copy() for field, array in vars(view.targets).items()}
        return SampleTargets(key=view.key, hard=view.hard, targets=Targets(**copies))

    def _manifest(self, name: str) -> Manifest:
        return read_manifest(self._place, name, self._layout, self._spec_digest)

    def _unit(self, name: str) -> DecodedUnit:
        if name in self._decoded:
            self._decoded.move_to_end(name)
            return self._decoded[name]
        if name not in self._manifests:
            raise UnknownUnit(f"{self.location} has no committed unit {name!r}")
        unit = load_unit(self._place, self._manifests[name], self._layout)
        self._decoded[name] = unit
        total = sum(item.nbytes() for item in self._decoded.values())
        while total > self._budget and len(self._decoded) > 1:
            total -= self._decoded.popitem(last=False)[1].nbytes()
        return unit


def load_unit(place: Place, manifest: Manifest, layout: Layout) -> DecodedUnit:
    """Read, check and decode the objects of a unit; CorruptObject names the first bad object and array."""
    for path, (size, digest) in manifest.objects.items():
        full = f"{manifest.prefix}/{path}"
        data = place.read(full, limit=size)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _corrupt(place, manifest, path, "its sha256 is not the one in the manifest")
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in manifest.arrays.items():
        if not all(shape):
            arrays[name] = np.empty(shape, dtype=dtype)
            continue
        path = f"{name}/{chunk_name(shape)}"
        try:
            arrays[name] = decode_chunk(
                place.read(f"{manifest.prefix}/{path}", limit=manifest.objects[path][0]), np.dtype(dtype), shape
            )
        except ChunkError as error:
            raise _corrupt(place, manifest, path, str(error)) from None
    try:
        return decode_unit(manifest.attributes, arrays, layout)
    except DecodeError as error:
        raise _corrupt(place, manifest, error.array, str(error)) from None


def _corrupt(place: Place, manifest: Manifest, path: str, problem: str) -> CorruptObject:
    array = path.split("/")[0] if path != "zarr.json" else None
    return CorruptObject(
        f"{place.location}/{manifest.prefix}/{path}: {problem}; unit {manifest.unit} cannot be used",
        object=f"{manifest.prefix}/{path}",
        array=array,
    )
