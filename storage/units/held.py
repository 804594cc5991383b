"""Decoded parts of a cache that are kept in memory, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_Part = TypeVar("_Part")


class Held:
    """The parts that were used last, as many as fit; a part larger than the budget is handed out and not kept."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._parts: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def get(self, name: Hashable, load: Callable[[], tuple[_Part, int]]) -> _Part:
        """The part of a name; where it is not held, what `load` returns with its bytes."""
        found: tuple[_Part, int] | None = self._parts.pop(name, None)
        if found is None:
            found = load()
            self._bytes += found[1]
        self._parts[name] = found
        while self._bytes > self._budget and self._parts:
            self._bytes -= self._parts.popitem(last=False)[1][1]
        return found[0]
