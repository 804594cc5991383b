"""Check every byte of a cache: plans against manifests, manifests against objects, objects against their meaning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from storage.errors import CacheError, CorruptIndex, CorruptObject, ObjectMissing
from storage.format.base import DecodeError, FormatVersion
from storage.head.document import ATTEMPT, FIXED, HEAD, HEAD_PATH
from storage.head.reading import Head
from storage.index import INDEX, INDEX_NAME, Index, build_index
from storage.plan import PLAN_NAME, PLANS, PlannedUnit, read_plans
from storage.reader import index_rows, read_root
from storage.spec import ROOT_LIMIT, ROOT_PATH
from storage.store import open_store
from storage.store.base import Location, Store
from storage.units.loading import corrupt, decode_arrays, object_problem
from storage.units.manifest import (
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


def verify_cache(location: Location, *, progress: Progress | None = None) -> VerifyReport:
    """Read and check everything in a cache.

    CacheMissing, CorruptObject or UnsupportedFormat where the root itself cannot be read; all else is reported.
    """
    store = open_store(location)
    version = read_root(store)
    report = VerifyReport(location=store.location)
    planned = _plans(store, report)
    present = committed_units(store)
    _check_names(store, report)
    for group in (PLANS, MANIFESTS, UNITS, INDEX):
        _check_group(store, f"{group}/{ROOT_PATH}", report)
    if planned is not None:
        report.missing = [name for name in planned if name not in set(present)]
    for number, name in enumerate(present):
        try:
            manifest = read_manifest(store, name, version)
        except CacheError as error:
            report.problems.append(Problem(name, None, manifest_path(name), str(error)))
        else:
            _check_unit(store, manifest, version, report, planned)
        if progress:
            progress(number + 1, len(present))
    if version.head is not None:
        _check_head(store, version, report)
    if not report.problems:
        _check_index(store, version, report)
    return report


def _plans(store: Store, report: VerifyReport) -> dict[str, PlannedUnit] | None:
    try:
        return {unit.name: unit for units in read_plans(store) for unit in units}
    except CacheError as error:
        report.problems.append(Problem(None, None, getattr(error, "object", PLANS), str(error)))
        return None


def _check_names(store: Store, report: VerifyReport) -> None:
    """Nothing but plans among the plans, nothing but manifests among the manifests."""
    for group, known in ((PLANS, PLAN_NAME.fullmatch), (MANIFESTS, _is_manifest)):
        for name in store.names(group):
            if name != ROOT_PATH and not known(name):
                path = f"{group}/{name}"
                message = f"{store.location}/{path}: not an object of this format; remove it"
                report.problems.append(Problem(None, None, path, message))


def _check_head(store: Store, version: FormatVersion, report: VerifyReport) -> None:
    """Every object of the head, and that the units name this one. A head that no unit needs yet may be missing."""
    problems = report.problems
    try:
        head = Head(store, version)
    except CacheError as error:
        if report.units or not isinstance(error, ObjectMissing):
            problems.append(Problem(None, None, HEAD_PATH, str(error)))
        return
    report.bytes += head.nbytes
    _check_group(store, f"{HEAD}/{ROOT_PATH}", report)
    problems += [Problem(None, error.array, error.object, str(error)) for error in head.verify()]
    for path in sorted(head.unlisted()):
        problems.append(Problem(None, None, path, f"{store.location}/{path}: head.json does not list this object"))
    for name in store.names(HEAD):
        path = f"{HEAD}/{name}"
        if path not in (f"{HEAD}/{ROOT_PATH}", HEAD_PATH, FIXED) and not ATTEMPT.fullmatch(name):
            problems.append(
                Problem(None, None, path, f"{store.location}/{path}: not an object of this format; remove it")
            )
    for name in committed_units(store):
        with contextlib.suppress(CacheError):  # reported already
            manifest = read_manifest(store, name, version)
            if manifest.head != head.digest:
                message = (
                    f"{store.location}/{manifest_path(name)}: made with the head {manifest.head}, not {head.digest}"
                )
                problems.append(Problem(name, None, manifest_path(name), message))


def _is_manifest(name: str) -> bool:
    return name.endswith(".json") and UNIT_NAME.fullmatch(name.removesuffix(".json")) is not None


def _check_group(store: Store, path: str, report: VerifyReport) -> None:
    try:
        if store.read(path, limit=ROOT_LIMIT) != group_document({}):
            raise CorruptObject(f"{store.location}/{path}: the file was changed or damaged", object=path)
    except CacheError as error:
        report.problems.append(Problem(None, None, path, str(error)))


def _check_unit(
    store: Store,
    manifest: Manifest,
    version: FormatVersion,
    report: VerifyReport,
    planned: dict[str, PlannedUnit] | None,
) -> None:
    """Every object of a unit on its own, so that each bad one is named, then what they mean together."""
    report.units += 1
    report.samples += manifest.samples
    report.positions += manifest.positions
    objects: dict[str, bytes] = {}
    before = len(report.problems)
    for path, (size, _) in manifest.objects.items():
        try:
            data = store.read(f"{manifest.prefix}/{path}", limit=size)
            report.bytes += len(data)
            if (problem := object_problem(manifest, version, path, data)) is not None:
                raise corrupt(store, manifest, path, problem)
            objects[path] = data
        except CacheError as error:
            _add(report, manifest, path, error)
    for path in store.tree(manifest.prefix).keys() - manifest.objects.keys():
        _add(report, manifest, path, corrupt(store, manifest, path, "the manifest does not list this object"))
    if len(report.problems) > before:
        return
    try:
        arrays = decode_arrays(store, manifest, version, objects)
        unit = version.decode(manifest.attributes, arrays)
        if content_digest(arrays) != manifest.content_digest:
            raise corrupt(store, manifest, "zarr.json", "the digest of its content is not the one in the manifest")
        if planned is not None:
            plan = planned.get(manifest.unit)
            expected = tuple(key for key in plan.keys if key not in manifest.skipped) if plan else None
            if plan is None or unit.keys != expected or not manifest.skipped.keys() <= set(plan.keys):
                raise corrupt(store, manifest, "keys/c.0.0", "its samples are not those of its plan")
    except DecodeError as error:
        _add(report, manifest, error.array, corrupt(store, manifest, error.array, str(error)))
    except CorruptObject as error:
        _add(report, manifest, error.object.removeprefix(f"{manifest.prefix}/"), error)


def _add(report: VerifyReport, manifest: Manifest, path: str, error: Exception) -> None:
    array = path.split("/")[0] if path != "zarr.json" else None
    report.problems.append(Problem(manifest.unit, array, f"{manifest.prefix}/{path}", str(error)))


def _check_index(store: Store, version: FormatVersion, report: VerifyReport) -> None:
    """An index that a reader would trust, or that was built of this content, must find every sample where it is."""
    path = f"{INDEX}/{INDEX_NAME}"
    file = store.local_file(path)
    if file is None:
        return
    try:
        index = Index.open(file)
        if index is None:
            return
        found = list(index.entries())
        expected = Index(b"".join(build_index(*index_rows(store, version))), "index")
        same_content = index.header.content == expected.header.content
        believed = index.header.settled() and index.header.changed == store.changed(MANIFESTS)
        if (believed and not same_content) or (same_content and found != list(expected.entries())):
            raise CorruptIndex(f"{file}: it does not match the cache; delete it, and it will be rebuilt", object=path)
    except CacheError as error:
        report.problems.append(Problem(None, None, path, str(error)))
