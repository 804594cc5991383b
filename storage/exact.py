"""Reading a cache of kind exact: states by part, target ids without states, the head when it is asked for.

cache = open_exact_cache("exact.zarr")
cache.rows(key).target_ids            # opens no object with states
cache[key].targets.states             # bits, [P, D]: only the chunks that hold them are read
for row, bits in cache.head().chunks("weight"): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import WrongTargets
from storage.format.base import EXACT, ExactUnit
from storage.format.v2.exact import Exact2
from storage.format.v2.layout import STATE_CHUNK
from storage.reader import Cache, CommittedCache, read_root
from storage.store import open_store
from storage.store.base import Location, Store
from storage.targets import ExactSample, ExactTargets, Turn
from storage.units.loading import corrupt, load_exact_unit, load_states
from storage.units.manifest import Manifest
from storage.units.mapped import keep_states


def open_exact_cache(
    location: Location, *, memory_budget: int = 256 * 2**20, scratch: str | Path | None = None
) -> ExactCache:
    """Open a cache of kind exact for reading, as it is now; its head is not read.

    Args:
        location: a local path, an s3://, gs://, az:// address, or an open store.
        memory_budget: bytes of decoded states and units kept in memory.
        scratch: a local directory for decoded states, shared by all processes. It grows to the size of all states.

    Raises:
        CacheMissing, CorruptObject, CorruptIndex, UnsupportedFormat: as `storage.reader.open_cache`.
        WrongTargets: it is of kind top_k.
    """
    return ExactCache(open_store(location), memory_budget, Path(scratch).absolute() if scratch else None)


def open_any_cache(
    location: Location, *, memory_budget: int = 256 * 2**20, scratch: str | Path | None = None
) -> Cache | ExactCache:
    """Open a cache of either kind, as `open_exact_cache` and `storage.reader.open_cache` do."""
    store = open_store(location)
    opened: type[Cache] | type[ExactCache] = ExactCache if read_root(store).kind == EXACT else Cache
    return opened(store, memory_budget, Path(scratch).absolute() if scratch else None)


@dataclass(frozen=True, kw_only=True)
class ExactRows:
    """What an exact cache holds for a sample, without its states."""

    hard: bool
    turns: tuple[Turn, ...]
    target_ids: NDArray[np.uint32]
    """[P] the answer's own tokens as teacher ids."""


class ExactCache(CommittedCache[ExactSample]):
    """A cache of kind exact; see `CommittedCache`."""

    def __init__(self, store: Store, memory_budget: int, scratch: Path | None) -> None:
        super().__init__(store, memory_budget, scratch)
        if not isinstance(self._version, Exact2):
            raise WrongTargets(f"{self.location} holds {self.kind} targets ({self._version.describe()}), not {EXACT}")
        self._exact_version = self._version

    @property
    def hidden_size(self) -> int:
        """D, numbers in a state."""
        return self._exact_version.layout.hidden_size

    @property
    def head_rows(self) -> int:
        """H, rows of the teacher's head, padding included."""
        return self._exact_version.layout.head_rows

    @property
    def state_dtype(self) -> str:
        """bfloat16, float16 or float32."""
        return self._exact_version.layout.state_dtype

    @property
    def head_dtype(self) -> str:
        """The dtype of the head's weight and bias, as `state_dtype`."""
        return self._exact_version.layout.head_dtype

    def __getitem__(self, key: str) -> ExactSample:
        """The targets of a sample, as copies. MissingSample, SkippedSample."""
        entry = self._place(key)
        manifest, unit = self._unit(entry.unit)
        self._check_place(entry, key, unit)
        return self._sample(manifest, unit, entry.sample)

    def rows(self, key: str) -> ExactRows:
        """What the cache holds for a sample, without its states; opens no object that holds states. MissingSample, SkippedSample."""
        entry = self._place(key)
        _, unit = self._unit(entry.unit)
        self._check_place(entry, key, unit)
        return ExactRows(
            hard=unit.is_hard(entry.sample),
            turns=unit.turns_of(entry.sample),
            target_ids=unit.target_ids[unit.rows(entry.sample)].copy(),
        )

    def unit_keys(self, name: str) -> tuple[str, ...]:
        """The keys of a unit's samples in planned order; opens no object that holds states."""
        return self._unit(name)[1].keys

    def read_unit(self, name: str) -> list[ExactSample]:
        """All samples of a unit in planned order, as copies."""
        manifest, unit = self._unit(name)
        return [self._sample(manifest, unit, index) for index in range(len(unit.keys))]

    def _sample(self, manifest: Manifest, unit: ExactUnit, index: int) -> ExactSample:
        rows = unit.rows(index)
        states = np.empty((rows.stop - rows.start, self.hidden_size), dtype=self._exact_version.layout.bits)
        for number in range(rows.start // STATE_CHUNK, -(-rows.stop // STATE_CHUNK) if len(states) else 0):
            chunk = self._states(manifest, number)
            start = number * STATE_CHUNK
            first, last = max(rows.start, start), min(rows.stop, start + len(chunk))
            states[first - rows.start : last - rows.start] = chunk[first - start : last - start]
        return ExactSample(
            key=unit.keys[index],
            hard=unit.is_hard(index),
            targets=ExactTargets(target_ids=unit.target_ids[rows].copy(), states=states),
            turns=unit.turns_of(index),
        )

    def _unit(self, name: str) -> tuple[Manifest, ExactUnit]:
        return self._held.get(name, lambda: self._load(name))

    def _load(self, name: str) -> tuple[tuple[Manifest, ExactUnit], int]:
        manifest = self._manifest(name)
        unit = load_exact_unit(self._store, manifest, self._exact_version)
        if len(unit.keys) != manifest.samples:
            raise corrupt(self._store, manifest, "keys", "its number of samples is not the one in the manifest")
        return (manifest, unit), unit.nbytes() + 200 * len(manifest.objects)

    def _states(self, manifest: Manifest, chunk: int) -> NDArray[Any]:
        """The states in a chunk of a unit: from memory, from the scratch directory, or from their objects."""

        def load() -> tuple[NDArray[Any], int]:
            states = keep_states(
                self._scratch,
                f"{manifest.content_digest}.{chunk}",
                self._exact_version.layout.bits,
                self.hidden_size,
                lambda: load_states(self._store, manifest, self._exact_version, chunk),
            )
            return states, states.nbytes

        return self._held.get((manifest.unit, chunk), load)
