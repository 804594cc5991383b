"""Check every byte of a cache: plans against manifests, manifests against objects, objects against their meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from storage.canonical import digest_of
from storage.errors import CacheError, CorruptIndex, CorruptObject
from storage.format.v1.encoding import DecodeError, decode_unit
from storage.index import INDEX, INDEX_NAME, Index, build_index
from storage.manifest import (
    MANIFESTS,
    UNIT_NAME,
    UNITS,
    Manifest,
    committed_units,
    content_digest,
    group_document,
    manifest_path,
    read_manifest,
)
from storage.plan import PLAN_NAME, PLANS, PlannedUnit, read_plans
from storage.reader import index_rows, read_root
from storage.spec import ROOT_LIMIT, ROOT_PATH, Layout, layout_of
from storage.store.base import Place, open_place
from storage.store.local import LocalPlace
from storage.unit_reading import corrupt, decode_arrays, object_problem

Progress = Callable[[int, int], None]
"""Called with (units checked, units in all)."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was committed."""

    unit: str | None
    array: str | None
    object: str
    """Path in the cache."""
    message: str


@dataclass(kw_only=True)
class VerifyReport:
    """What `fs-teacher verify` found."""

    location: str
    units: int = 0
    """Committed units checked."""
    samples: int = 0
    positions: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Planned units without a manifest: not dumped yet, or the manifest was deleted."""

    def ok(self, *, partial: bool = False) -> bool:
        """Whether nothing is wrong; `partial` accepts units that are not committed."""
        return not self.problems and (partial or not self.missing)


def verify_cache(location: str | Path, *, progress: Progress | None = None) -> VerifyReport:
    """Read and check everything in a cache.

    CacheMissing, CorruptObject or UnsupportedFormat where the root itself cannot be read; all else is reported.
    """
    place = open_place(location)
    spec = read_root(place)
    report = VerifyReport(location=place.location)
    layout, spec_digest = layout_of(spec), digest_of(spec)
    planned = _plans(place, report)
    present = committed_units(place)
    _check_names(place, report)
    for group in (PLANS, MANIFESTS, UNITS, INDEX):
        _check_group(place, f"{group}/{ROOT_PATH}", report)
    if planned is not None:
        report.missing = [name for name in planned if name not in set(present)]
    for number, name in enumerate(present):
        try:
            manifest = read_manifest(place, name, layout, spec_digest)
        except CacheError as error:
            report.problems.append(Problem(name, None, manifest_path(name), str(error)))
        else:
            _check_unit(place, manifest, layout, report, planned)
        if progress:
            progress(number + 1, len(present))
    if isinstance(place, LocalPlace) and not report.problems:
        _check_index(place, layout, spec_digest, report)
    return report


def _plans(place: Place, report: VerifyReport) -> dict[str, PlannedUnit] | None:
    try:
        return {unit.name: unit for units in read_plans(place) for unit in units}
    except CacheError as error:
        report.problems.append(Problem(None, None, getattr(error, "object", PLANS), str(error)))
        return None


def _check_names(place: Place, report: VerifyReport) -> None:
    """Nothing but plans among the plans, nothing but manifests among the manifests."""
    for group, known in ((PLANS, PLAN_NAME.fullmatch), (MANIFESTS, _is_manifest)):
        for name in place.names(group):
            if name != ROOT_PATH and not known(name):
                path = f"{group}/{name}"
                message = f"{place.location}/{path}: not an object of this format; remove it"
                report.problems.append(Problem(None, None, path, message))


def _is_manifest(name: str) -> bool:
    return name.endswith(".json") and UNIT_NAME.fullmatch(name.removesuffix(".json")) is not None


def _check_group(place: Place, path: str, report: VerifyReport) -> None:
    try:
        if place.read(path, limit=ROOT_LIMIT) != group_document({}):
            raise CorruptObject(f"{place.location}/{path}: the file was changed or damaged", object=path)
    except CacheError as error:
        report.problems.append(Problem(None, None, path, str(error)))


def _check_unit(
    place: Place, manifest: Manifest, layout: Layout, report: VerifyReport, planned: dict[str, PlannedUnit] | None
) -> None:
    """Every object of a unit on its own, so that each bad one is named, then what they mean together."""
    report.units += 1
    report.samples += manifest.samples
    report.positions += manifest.positions
    objects: dict[str, bytes] = {}
    before = len(report.problems)
    for path, (size, _) in manifest.objects.items():
        try:
            data = place.read(f"{manifest.prefix}/{path}", limit=size)
            report.bytes += len(data)
            if (problem := object_problem(manifest, path, data)) is not None:
                raise corrupt(place, manifest, path, problem)
            objects[path] = data
        except CacheError as error:
            _add(report, manifest, path, error)
    for path in place.tree(manifest.prefix).keys() - manifest.objects.keys():
        _add(report, manifest, path, corrupt(place, manifest, path, "the manifest does not list this object"))
    if len(report.problems) > before:
        return
    try:
        arrays = decode_arrays(place, manifest, objects)
        unit = decode_unit(manifest.attributes, arrays, layout)
        if content_digest(arrays) != manifest.content_digest:
            raise corrupt(place, manifest, "zarr.json", "the content is not the one whose digest the manifest has")
        if planned is not None:
            plan = planned.get(manifest.unit)
            expected = tuple(key for key in plan.keys if key not in manifest.skipped) if plan else None
            if plan is None or unit.keys != expected or not manifest.skipped.keys() <= set(plan.keys):
                raise corrupt(place, manifest, "keys/c.0.0", "it holds other samples than its plan")
    except DecodeError as error:
        _add(report, manifest, error.array, corrupt(place, manifest, error.array, str(error)))
    except CorruptObject as error:
        _add(report, manifest, error.object.removeprefix(f"{manifest.prefix}/"), error)


def _add(report: VerifyReport, manifest: Manifest, path: str, error: Exception) -> None:
    array = path.split("/")[0] if path != "zarr.json" else None
    report.problems.append(Problem(manifest.unit, array, f"{manifest.prefix}/{path}", str(error)))


def _check_index(place: LocalPlace, layout: Layout, spec_digest: str, report: VerifyReport) -> None:
    """An index that a reader would believe, or that is of this content, must find every sample where it lies."""
    try:
        index = Index.open(place.root / INDEX / INDEX_NAME)
        if index is None:
            return
        found = list(index.entries())
        expected = Index(b"".join(build_index(*index_rows(place, layout, spec_digest))), "index")
        same_content = index.header.content == expected.header.content
        believed = index.header.settled() and index.header.changed == place.changed(MANIFESTS)
        if (believed and not same_content) or (same_content and found != list(expected.entries())):
            raise CorruptIndex(
                f"{place.root / INDEX / INDEX_NAME}: it does not match the cache; delete it, it is rebuilt",
                object=f"{INDEX}/{INDEX_NAME}",
            )
    except CacheError as error:
        report.problems.append(Problem(None, None, f"{INDEX}/{INDEX_NAME}", str(error)))
