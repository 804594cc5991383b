"""Every error of the logit cache, as a tree: `CacheError` at the root, each leaf also a builtin kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from storage.wording import counted


class CacheError(Exception):
    """Something is wrong with a cache or with what it was given; the message says what, where and what to do."""


class CacheMissing(CacheError, FileNotFoundError):
    """There is no cache at the location."""


class ObjectMissing(CacheError, FileNotFoundError):
    """An object that the cache needs was not found."""


class UnsafeObject(CacheError, OSError):
    """An object is a link, not a plain file, larger than allowed, or its name would leave the cache."""


class StoreError(CacheError, OSError):
    """The file system or the object store refused an operation (full disk, no permission, no hard links)."""


class CorruptObject(CacheError, ValueError):
    """The bytes of an object are not what was committed. `object` is its path, `array` the array if it is one."""

    def __init__(self, message: str, *, object: str, array: str | None = None) -> None:
        super().__init__(message)
        self.object = object
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class CorruptIndex(CorruptObject):
    """The local index of sample keys does not hold what was written; it can be deleted and is rebuilt."""


class UnsupportedFormat(CacheError, ValueError):
    """The cache was written in a version of the format that this program does not read."""


class WrongTargets(CacheError, ValueError):
    """The cache holds targets of another kind than was asked for."""


class InvalidSpec(CacheError, ValueError):
    """A cache specification lacks a field or holds an impossible value."""


class SpecMismatch(CacheError, ValueError):
    """A cache exists already with another specification.

    `differences` lists (dotted path, value in the cache, value requested); `ABSENT` marks a missing side.
    """

    ABSENT = "(absent)"

    def __init__(self, location: str, differences: Sequence[tuple[str, Any, Any]]) -> None:
        self.location = location
        self.differences = list(differences)
        lines = [
            f"  {path}: the cache has {_shown(cached)}, the request has {_shown(requested)}"
            for path, cached, requested in self.differences
        ]
        super().__init__(
            f"{location} holds a cache with another specification ("
            f"{counted(len(lines), 'difference')}):\n"
            + "\n".join(lines)
            + "\nuse another cache path, or change the request to match the cache"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.differences)


class InvalidTargets(CacheError, ValueError):
    """The targets handed to the writer break a rule of the format (shape, order, range, a missing sample)."""


class MissingSample(CacheError, KeyError):
    """The cache holds no targets for this sample key."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class SkippedSample(MissingSample):
    """The sample was planned, but the dump skipped it; the message gives the reason."""


class UnknownUnit(CacheError, KeyError):
    """No plan of this cache has a unit of this name, or the unit is not committed."""

    def __str__(self) -> str:
        return str(self.args[0])


class TemperatureOutOfRange(CacheError, ValueError):
    """The temperature lies outside the node temperatures of the cache."""


class StaleAttempt(CacheError, RuntimeError):
    """An attempt took so long that garbage collection may have removed its data; it is not committed."""


def _rebuild(kind: type[CorruptObject], args: tuple[Any, ...], state: dict[str, Any]) -> CorruptObject:
    error = kind(*args, object=state["object"], array=state["array"])
    return error


def _shown(value: Any) -> str:
    if value == SpecMismatch.ABSENT:
        return SpecMismatch.ABSENT
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:197]}..."
