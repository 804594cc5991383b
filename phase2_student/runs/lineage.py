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
    """The cache of the runs in its present state."""

    status: CacheStatus
    digest: str

    @property
    def teacher(self) -> dict[str, Any]:
        """The teacher in the cache's specification."""
        found: dict[str, Any] = self.status.spec.get("teacher", {})
        return found

    @property
    def seconds(self) -> float | None:
        """Time that the workers took to dump it, without loading the teacher; None if the cache does not record it."""
        return self.status.statistics.get("seconds")


def read_cache(runs: Sequence[Run]) -> tuple[CacheFacts | None, str]:
    """The cache that the runs name; or None and the reason."""
    locations = list(dict.fromkeys(str(run.facts["cache"]) for run in runs if run.facts.get("cache")))
    if not locations:
        return None, "The runs name no cache."
    try:
        status = cache_status(locations[-1])
        return CacheFacts(status=status, digest=open_any_cache(locations[-1]).digest), ""
    except (CacheError, OSError) as error:
        return None, f"The cache could not be opened: {error}"


def pair_names(run: Run, cache: CacheFacts | None) -> tuple[str, str]:
    """Names of teacher and student: a hub id, or the last part of a directory."""
    teacher = (cache.teacher.get("model") if cache else None) or run.facts.get("teacher") or run.key("teacher.model")
    student = run.facts.get("student") or run.key("student.model")
    return without_directories(teacher or "teacher"), without_directories(student or "student")


def without_directories(value: Any) -> Any:
    """The last part of an absolute path; anything else unchanged."""
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value
