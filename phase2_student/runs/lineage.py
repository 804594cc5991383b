"""Where a student comes from: the cache of its run as it is now, and the names of the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phase2_student.runs.records import Run
from storage.errors import CacheError
from storage.exact import open_any_cache
from storage.maintenance.status import CacheStatus, cache_status


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """A cache of runs in its present state."""

    status: CacheStatus
    digest: str

    @property
    def name(self) -> str:
        """The last part of its location."""
        return self.status.location.rstrip("/").rpartition("/")[2]

    @property
    def derived(self) -> bool:
        """Whether it was derived from an exact cache: no token went through the teacher for it."""
        return self.status.statistics.get("tokens") == 0 and self.status.samples > 0

    @property
    def teacher(self) -> dict[str, Any]:
        """The teacher in the cache's specification."""
        found: dict[str, Any] = self.status.spec.get("teacher", {})
        return found

    @property
    def seconds(self) -> float | None:
        """Time that the workers took to dump it, without loading the teacher; None if the cache does not record it."""
        return self.status.statistics.get("seconds")


def read_cache(run: Run) -> tuple[CacheFacts | None, str]:
    """The cache that a run names; or None and the reason."""
    location = run.facts.get("cache")
    if not location:
        return None, "The runs name no cache."
    try:
        return CacheFacts(status=cache_status(location), digest=open_any_cache(location).digest), ""
    except (CacheError, OSError) as error:
        return None, f"The cache could not be opened: {error}"


def read_caches(runs: Sequence[Run]) -> tuple[dict[str, CacheFacts], list[str]]:
    """The caches that the runs name, by their locations in `run.json`; and why others could not be opened, or that none is named."""
    caches: dict[str, CacheFacts] = {}
    troubles: dict[str, None] = {}
    naming = [run for run in runs if run.facts.get("cache")] or runs[:1]
    for run in naming:
        location = str(run.facts.get("cache"))
        if location not in caches:
            found, trouble = read_cache(run)
            if found is None:
                troubles[trouble] = None
            else:
                caches[location] = found
    return caches, list(troubles)


def pair_names(run: Run, cache: CacheFacts | None) -> tuple[str, str]:
    """Names of teacher and student: a hub id, or the last part of a directory."""
    teacher = (cache.teacher.get("model") if cache else None) or run.facts.get("teacher") or run.key("teacher.model")
    student = run.facts.get("student") or run.key("student.model")
    return without_directories(teacher or "teacher"), without_directories(student or "student")


def without_directories(value: Any) -> Any:
    """The last part of an absolute path; anything else unchanged."""
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value
