"""Format version 2: which kind of cache a specification describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.errors import InvalidSpec
from storage.format.base import EXACT, FormatVersion
from storage.format.v2.exact import Exact2
from storage.format.v2.top_k import TopK2


def version2(spec: Mapping[str, Any]) -> FormatVersion:
    """The format of a cache of version 2; InvalidSpec naming a field that is missing or impossible."""
    kind = spec.get("targets")
    if kind == EXACT:
        return Exact2(spec)
    if "targets" in spec:
        raise InvalidSpec(f"spec.targets: expected {EXACT!r}, or no such field for the largest entries, got {kind!r}")
    return TopK2(spec)
