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
        self.parts: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def get(self, name: Hashable, load: Callable[[], tuple[_Part, int]]) -> _Part:
        """The part of this name; if it is not held, `load` makes it and gives its bytes."""
        found: tuple[_Part, int] | None = self.parts.pop(name, None)
        if found is None:
            found = load()
            self.bytes += found[1]
        self.parts[name] = found
        while self.bytes > self._budget and self.parts:
            self.bytes -= self.parts.popitem(last=False)[1][1]
        return found[0]
