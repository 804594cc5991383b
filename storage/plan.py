"""Which sample belongs to which unit, fixed before the work in immutable plan objects."""

from __future__ import annotations

import operator
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from storage.canonical import seal, unseal
from storage.errors import CorruptObject, InvalidTargets
from storage.store.base import Place
from storage.temporary import temporary_database

PLANS = "plans"
PLAN_LIMIT = 8 * 2**20
PLAN_SAMPLES = 10_000  # of a new plan; its JSON is held several times over while it is sealed or read
PLAN_NAME = re.compile(r"(\d{6})\.json")
_KEY = re.compile(r"[0-9a-f]{64}")
_KEY_BYTES = 32


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be dumped and how many answer positions it has."""

    key: str
    positions: int


@dataclass(frozen=True)
class PlannedUnit:
    """A unit of work; as long as it has samples. It holds no keys: they are read when they are asked for."""

    name: str
    samples: int
    positions: int
    """How many answer positions the planner expected of it."""
    _plans: _Plans = field(repr=False, compare=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The sample keys in order, 64 hex digits each; made anew at every call. CacheError if the plan was taken away."""
        text = self._plans.packed_keys(self.name).hex()
        return tuple(text[start : start + 2 * _KEY_BYTES] for start in range(0, len(text), 2 * _KEY_BYTES))

    def __len__(self) -> int:
        return self.samples


def check_key(key: Any) -> str:
    """The key itself; InvalidTargets if it is not 64 lower-case hex digits."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidTargets(f"a sample key is 64 lower-case hex digits, got {key!r}")
    return key


def read_plans(place: Place, start: int = 0) -> Iterator[list[PlannedUnit]]:
    """The units of every plan object from number `start` on, in order; CorruptObject for a damaged or missing plan."""
    plans = _Plans(place)
    for number, name in enumerate(_plan_names(place)):
        if name != _plan_name(number):
            raise CorruptObject(
                f"{place.location}/{PLANS}/{_plan_name(number)} is missing, but {name} is there; restore it",
                object=f"{PLANS}/{_plan_name(number)}",
            )
        if number >= start:
            yield plans.units(number)


class _Plans:
    """The plan objects of a place; the two that were read last are held."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._read = lru_cache(maxsize=2)(self._read_plan)

    def units(self, number: int) -> list[PlannedUnit]:
        return [
            PlannedUnit(f"{number:06d}-{index:06d}", len(keys) // _KEY_BYTES, positions, self)
            for index, (keys, positions) in enumerate(self._read(number))
        ]

    def packed_keys(self, unit: str) -> bytes:
        number, index = map(int, unit.split("-"))
        return self._read(number)[index][0]

    def _read_plan(self, number: int) -> list[tuple[bytes, int]]:
        path = f"{PLANS}/{_plan_name(number)}"
        document = unseal(self._place.read(path, limit=PLAN_LIMIT), f"{self._place.location}/{path}")
        units = document.get("units")
        if set(document) != {"id", "units"} or not isinstance(units, list) or not all(map(_is_unit, units)):
            raise CorruptObject(f"{path}: not a plan of this format; the file was changed", object=path)
        return [(bytes.fromhex("".join(unit["keys"])), unit["positions"]) for unit in units]


def add_plan(place: Place, samples: Iterable[PlannedSample], unit_positions: int) -> int:
    """Plan the samples that no plan has yet; how many this call added.

    A unit closes when it has reached `unit_positions` positions. Of several planners one creates the next plan
    object; the others read it and plan only what is still missing.
    """
    if unit_positions < 1:
        raise InvalidTargets(f"unit_positions: expected at least 1, got {unit_positions}")
    wanted = _Wanted(samples)
    added = 0
    seen = 0
    while True:
        for units in read_plans(place, seen):
            for unit in units:
                wanted.discard(unit)
            seen += 1
        batch = wanted.first(PLAN_SAMPLES)
        if not batch:
            return added
        document = {"id": secrets.token_hex(8), "units": _group(batch, unit_positions)}
        if place.create(f"{PLANS}/{_plan_name(seen)}", seal(document)):
            added += len(batch)


class _Wanted:
    """Samples that may have to be planned, in their order, each key once; in a temporary file, however many they are."""

    def __init__(self, samples: Iterable[PlannedSample]) -> None:
        self._rows = temporary_database(self)
        self._rows.execute("CREATE TABLE wanted (row INTEGER PRIMARY KEY, key BLOB UNIQUE, positions INTEGER)")
        self._rows.executemany(
            "INSERT OR IGNORE INTO wanted (key, positions) VALUES (?, ?)",
            ((bytes.fromhex(check_key(sample.key)), operator.index(sample.positions)) for sample in samples),
        )

    def discard(self, unit: PlannedUnit) -> None:
        """The unit's samples are planned."""
        self._rows.executemany("DELETE FROM wanted WHERE key = ?", ((bytes.fromhex(key),) for key in unit.keys))

    def first(self, count: int) -> list[PlannedSample]:
        """The first samples that are still wanted."""
        rows = self._rows.execute("SELECT key, positions FROM wanted ORDER BY row LIMIT ?", (count,))
        return [PlannedSample(key.hex(), positions) for key, positions in rows]


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
    return isinstance(keys, list) and all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys)


def _plan_name(number: int) -> str:
    return f"{number:06d}.json"


def _plan_names(place: Place) -> list[str]:
    return [name for name in place.names(PLANS) if PLAN_NAME.fullmatch(name)]
