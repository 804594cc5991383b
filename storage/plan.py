"""Which sample belongs to which unit, fixed before the work in immutable plan objects."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from storage.canonical import seal, unseal
from storage.errors import CorruptObject, InvalidTargets
from storage.place import Place

PLANS = "plans"
PLAN_LIMIT = 8 * 2**20
PLAN_SAMPLES = 100_000
PLAN_NAME = re.compile(r"(\d{6})\.json")
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be dumped and how many answer positions it has."""

    key: str
    positions: int


@dataclass(frozen=True)
class PlannedUnit:
    """A unit of work: its name and the keys of its samples, in order."""

    name: str
    keys: tuple[str, ...]
    positions: int = 0
    """How many answer positions the planner expected of it."""


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
    wanted = {check_key(sample.key): sample.positions for sample in samples}
    added = 0
    seen = 0
    while True:
        for units in read_plans(place, seen):
            for unit in units:
                for key in unit.keys:
                    wanted.pop(key, None)
            seen += 1
        if not wanted:
            return added
        batch = dict(list(wanted.items())[:PLAN_SAMPLES])
        document = {"id": secrets.token_hex(8), "units": _group(batch, unit_positions)}
        if place.create(f"{PLANS}/{_plan_name(seen)}", seal(document)):
            added += len(batch)


def _group(samples: dict[str, int], unit_positions: int) -> list[dict[str, Any]]:
    units: list[dict[str, Any]] = [{"keys": [], "positions": 0}]
    for key, positions in samples.items():
        if units[-1]["positions"] >= unit_positions:
            units.append({"keys": [], "positions": 0})
        units[-1]["keys"].append(key)
        units[-1]["positions"] += positions
    return units


def _parse(document: dict[str, Any], number: int, path: str) -> list[PlannedUnit]:
    units = document.get("units")
    if set(document) != {"id", "units"} or not isinstance(units, list) or not all(map(_is_unit, units)):
        raise CorruptObject(f"{path}: not a plan of this format; the file was changed", object=path)
    return [
        PlannedUnit(f"{number:06d}-{index:06d}", tuple(unit["keys"]), unit["positions"])
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
