"""Which sample belongs to which unit, fixed before the work in immutable plan objects."""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.canonical import seal, unseal
from storage.errors import CorruptObject, InvalidTargets
from storage.place import Place

PLANS = "plans"
PLAN_LIMIT = 8 * 2**20
PLAN_SAMPLES = 25_000  # of a new plan; its JSON is held several times over while it is sealed or read
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
    """A unit of work: its name and the keys of its samples, in order; as long as it has samples."""

    name: str
    packed_keys: bytes
    """32 bytes each: as text the keys of half a million samples take 60 MB."""
    positions: int = 0
    """How many answer positions the planner expected of it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The sample keys, 64 hex digits each; made anew at every call."""
        text = self.packed_keys.hex()
        return tuple(text[start : start + 2 * _KEY_BYTES] for start in range(0, len(text), 2 * _KEY_BYTES))

    def __len__(self) -> int:
        return len(self.packed_keys) // _KEY_BYTES


def check_key(key: Any) -> str:
    """The key itself; InvalidTargets if it is not 64 lower-case hex digits."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidTargets(f"a sample key is 64 lower-case hex digits, got {key!r}")
    return key


def read_plans(place: Place, start: int = 0) -> Iterator[list[PlannedUnit]]:
    """The units of every plan object from number `start` on, in order; CorruptObject for a damaged or missing plan."""
    for number, name in enumerate(_plan_names(place)):
        path = f"{PLANS}/{name}"
        if name != _plan_name(number):
            raise CorruptObject(
                f"{place.location}/{PLANS}/{_plan_name(number)} is missing, but {name} is there; restore it",
                object=f"{PLANS}/{_plan_name(number)}",
            )
        if number < start:
            continue
        yield _parse(unseal(place.read(path, limit=PLAN_LIMIT), f"{place.location}/{path}"), number, path)


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
    """Samples that may have to be planned, in their order, each key once; some 50 bytes a sample."""

    def __init__(self, samples: Iterable[PlannedSample]) -> None:
        self._packed, self._positions = bytearray(), array("q")
        for sample in samples:
            self._packed += bytes.fromhex(check_key(sample.key))
            self._positions.append(sample.positions)
        self._keys = _as_keys(self._packed)
        self._order = np.argsort(self._keys, kind="stable")
        self._left = np.ones(len(self._keys), dtype=np.bool_)
        ordered = self._keys[self._order]
        self._left[self._order[1:][ordered[1:] == ordered[:-1]]] = False

    def discard(self, unit: PlannedUnit) -> None:
        """The unit's samples are planned."""
        planned = _as_keys(unit.packed_keys)
        places = np.searchsorted(self._keys, planned, sorter=self._order)
        inside = places < len(self._keys)
        rows = self._order[places[inside]]
        self._left[rows[self._keys[rows] == planned[inside]]] = False

    def first(self, count: int) -> list[PlannedSample]:
        """The first samples that are still wanted."""
        rows = np.flatnonzero(self._left)[:count].tolist()
        keys = (self._packed[row * _KEY_BYTES : (row + 1) * _KEY_BYTES].hex() for row in rows)
        return [PlannedSample(key, self._positions[row]) for key, row in zip(keys, rows, strict=True)]


def _as_keys(packed: bytes | bytearray) -> NDArray[np.bytes_]:
    # S32 compares without trailing zeros, which at one length says the same
    return np.frombuffer(packed, dtype=f"S{_KEY_BYTES}")


def _group(samples: Sequence[PlannedSample], unit_positions: int) -> list[dict[str, Any]]:
    units: list[dict[str, Any]] = [{"keys": [], "positions": 0}]
    for sample in samples:
        if units[-1]["positions"] >= unit_positions:
            units.append({"keys": [], "positions": 0})
        units[-1]["keys"].append(sample.key)
        units[-1]["positions"] += sample.positions
    return units


def _parse(document: dict[str, Any], number: int, path: str) -> list[PlannedUnit]:
    units = document.get("units")
    if set(document) != {"id", "units"} or not isinstance(units, list) or not all(map(_is_unit, units)):
        raise CorruptObject(f"{path}: not a plan of this format; the file was changed", object=path)
    return [
        PlannedUnit(f"{number:06d}-{index:06d}", bytes.fromhex("".join(unit["keys"])), unit["positions"])
        for index, unit in enumerate(units)
    ]


def _is_unit(unit: Any) -> bool:
    if not isinstance(unit, dict) or set(unit) != {"keys", "positions"} or type(unit["positions"]) is not int:
        return False
    keys = unit["keys"]
    return isinstance(keys, list) and all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys)


def _plan_name(number: int) -> str:
    return f"{number:06d}.json"


def _plan_names(place: Place) -> list[str]:
    return [name for name in place.names(PLANS) if PLAN_NAME.fullmatch(name)]
