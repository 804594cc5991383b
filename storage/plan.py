"""Which sample belongs to which unit, fixed before the work in immutable plan objects."""

from __future__ import annotations

import operator
import re
import secrets
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from storage.canonical import seal, unseal
from storage.errors import CorruptObject, InvalidTargets
from storage.format.base import MAX_UNIT_VALUES
from storage.keys import KEY, KEY_BYTES, as_rows, check_key, packed, repeated, unpacked
from storage.store.base import Store

PLANS = "plans"
PLAN_LIMIT = 8 * 2**20
MAX_PLAN_SAMPLES = 100_000
PLAN_SAMPLES = 10_000  # of a new plan; its JSON is held several times over while it is sealed or read
PLAN_NAME = re.compile(r"(\d{6})\.json")


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be dumped and how many answer positions it has."""

    key: str
    positions: int


@dataclass(frozen=True)
class PlannedUnit:
    """A unit of work; its length is its number of samples. It holds no keys: they are read when asked for."""

    name: str
    samples: int
    positions: int
    """How many answer positions the planner expected of it."""
    _plans: _Plans = field(repr=False, compare=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The sample keys in order, 64 hex digits each; read again at every call. CacheError if the plan was removed."""
        return unpacked(self._plans.packed_keys(self.name))

    def __len__(self) -> int:
        return self.samples


def read_plans(store: Store, start: int = 0, *, held: int = 2) -> Iterator[list[PlannedUnit]]:
    """The units of every plan object from number `start` on, in order; CorruptObject for a damaged or missing plan.

    `held` plan objects, those that were read last, stay in memory for the units' keys.
    """
    plans = _Plans(store, held)
    for number, name in enumerate(_plan_names(store)):
        if name != _plan_name(number):
            raise CorruptObject(
                f"{store.location}/{PLANS}/{_plan_name(number)} not found, although {name} exists; restore it",
                object=f"{PLANS}/{_plan_name(number)}",
            )
        if number >= start:
            yield plans.units(number)


class _Plans:
    """The plan objects of a store; those that were read last are held."""

    def __init__(self, store: Store, held: int) -> None:
        self._store = store
        self._read = lru_cache(maxsize=held)(self._read_plan)

    def units(self, number: int) -> list[PlannedUnit]:
        return [
            PlannedUnit(f"{number:06d}-{index:06d}", len(keys) // KEY_BYTES, positions, self)
            for index, (keys, positions) in enumerate(self._read(number))
        ]

    def packed_keys(self, unit: str) -> bytes:
        number, index = map(int, unit.split("-"))
        return self._read(number)[index][0]

    def _read_plan(self, number: int) -> list[tuple[bytes, int]]:
        path = f"{PLANS}/{_plan_name(number)}"
        document = unseal(self._store.read(path, limit=PLAN_LIMIT), f"{self._store.location}/{path}")
        units = document.get("units")
        if set(document) != {"id", "units"} or not isinstance(units, list) or not all(map(_is_unit, units)):
            raise CorruptObject(f"{path}: not a plan of this format; the file was changed", object=path)
        if (samples := sum(len(unit["keys"]) for unit in units)) > MAX_PLAN_SAMPLES:
            raise CorruptObject(
                f"{path}: the plan has {samples:,} samples, the format allows {MAX_PLAN_SAMPLES:,}; another program wrote it",
                object=path,
            )
        return [(packed(unit["keys"]), unit["positions"]) for unit in units]


def add_plan(
    store: Store,
    samples: Iterable[PlannedSample],
    unit_positions: int,
    skipped_by: Callable[[PlannedUnit], Collection[str]] | None = None,
) -> int:
    """Plan the samples that no plan has yet. Returns how many this call added.

    A unit closes when it has reached `unit_positions` positions. Of several planners one creates the next plan
    object; the others read it and plan only what is still missing. `skipped_by` gives the keys of a unit that count as not
    planned: those that it skipped, where they are to be planned again.
    """
    if unit_positions < 1:
        raise InvalidTargets(f"unit_positions: expected at least 1, got {unit_positions}")
    wanted = _Wanted(samples)
    added = 0
    seen = 0
    while True:
        for units in read_plans(store, seen, held=1):
            for unit in units:
                wanted.discard(unit, skipped_by(unit) if skipped_by else ())
            seen += 1
        count, data = _next_plan(wanted, unit_positions)
        if not count:
            return added
        if store.create(f"{PLANS}/{_plan_name(seen)}", data):
            added += count
        del data


def _next_plan(wanted: _Wanted, unit_positions: int) -> tuple[int, bytes]:
    """How many samples the next plan object has, and its bytes: the samples themselves are held no longer than here."""
    batch = wanted.first(PLAN_SAMPLES)
    return len(batch), seal({"id": secrets.token_hex(8), "units": _group(batch, unit_positions)})


class _Wanted:
    """Samples that may have to be planned, in their order, each key once; about 50 bytes each."""

    def __init__(self, samples: Iterable[PlannedSample]) -> None:
        keys, positions = bytearray(), array("I")
        for sample in samples:
            keys += bytes.fromhex(check_key(sample.key))
            positions.append(_checked_positions(sample))
        self._packed = keys
        self._positions = positions
        self._keys = as_rows(keys)
        self._sorted = np.argsort(self._keys, kind="stable").astype(np.uint32)
        self._left = np.ones(len(self._keys), dtype=np.bool_)
        self._left[self._sorted[repeated(self._keys, self._sorted)]] = False

    def discard(self, unit: PlannedUnit, skipped: Collection[str]) -> None:
        """Drop the samples of a planned unit, except some that it skipped."""
        if not len(self._keys):
            return
        planned = as_rows(packed(key for key in unit.keys if key not in skipped))
        at = np.searchsorted(self._keys, planned, sorter=self._sorted)
        rows = self._sorted[np.minimum(at, len(self._keys) - 1)]
        self._left[rows[self._keys[rows] == planned]] = False

    def first(self, count: int) -> list[PlannedSample]:
        """The first samples that are still wanted."""
        rows = np.flatnonzero(self._left)[:count].tolist()
        return [
            PlannedSample(self._packed[KEY_BYTES * row : KEY_BYTES * (row + 1)].hex(), self._positions[row])
            for row in rows
        ]


def _checked_positions(sample: PlannedSample) -> int:
    positions = operator.index(sample.positions)
    if not 0 <= positions <= MAX_UNIT_VALUES:
        raise InvalidTargets(f"sample {sample.key}: expected 0 to {MAX_UNIT_VALUES:,} positions, got {positions:,}")
    return positions


def _group(samples: Sequence[PlannedSample], unit_positions: int) -> list[dict[str, Any]]:
    units: list[dict[str, Any]] = [{"keys": [], "positions": 0}]
    for sample in samples:
        if units[-1]["positions"] >= unit_positions:
            units.append({"keys": [], "positions": 0})
        units[-1]["keys"].append(sample.key)
        units[-1]["positions"] += sample.positions
    return units


def _is_unit(unit: Any) -> bool:
    if not isinstance(unit, dict) or set(unit) != {"keys", "positions"} or type(unit["positions"]) is not int:
        return False
    keys = unit["keys"]
    return isinstance(keys, list) and all(isinstance(key, str) and KEY.fullmatch(key) for key in keys)


def _plan_name(number: int) -> str:
    return f"{number:06d}.json"


def _plan_names(store: Store) -> list[str]:
    return [name for name in store.names(PLANS) if PLAN_NAME.fullmatch(name)]
