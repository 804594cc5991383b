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
    """The cache of the runs, as it is now."""

    status: CacheStatus
    digest: str

    @property
    def teacher(self) -> dict[str, Any]:
        """What the specification says of the teacher."""
        found: dict[str, Any] = self.status.spec.get("teacher", {})
        return found

    @property
    def seconds(self) -> float | None:
        """Time of the workers that dumped it, without loading the teacher; None for a cache that does not say."""
        return self.status.statistics.get("seconds")


def read_cache(runs: Sequence[Run]) -> tuple[CacheFacts | None, str]:
    """The cache that the runs name; or None, and why there is none."""
    locations = list(dict.fromkeys(str(run.facts["cache"]) for run in runs if run.facts.get("cache")))
    if not locations:
        return None, "The runs name no cache."
    try:
        status = cache_status(locations[-1])
        return CacheFacts(status=status, digest=open_any_cache(locations[-1]).digest), ""
    except (CacheError, OSError) as error:
        return None, f"The cache could not be opened: {error}"


def pair_names(run: Run, cache: CacheFacts | None) -> tuple[str, str]:
    """Teacher and student: a hub id as it is, of a directory its last part."""
    teacher = (cache.teacher.get("model") if cache else None) or run.facts.get("teacher") or run.key("teacher.model")
    student = run.facts.get("student") or run.key("student.model")
    return without_directories(teacher or "teacher"), without_directories(student or "student")


def without_directories(value: Any) -> Any:
    """The last part of an absolute path; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value
