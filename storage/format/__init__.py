"""How targets become arrays and chunks: one package per format version; the specification says which one a cache has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from storage.errors import UnsupportedFormat
from storage.format.base import FormatVersion
from storage.format.v1.version import Version1
from storage.format.v2.version import version2

VERSIONS: dict[int, Callable[[Mapping[str, Any]], FormatVersion]] = {1: Version1, 2: version2}
"""Every version that this program reads."""
WRITTEN = 2
"""The version of new caches whose specification does not name one."""


def format_of(spec: Mapping[str, Any]) -> FormatVersion:
    """The format version of a specification, for its caches.

    Raises:
        UnsupportedFormat: this program does not read the version; says which program does.
        InvalidSpec: a field that the version needs is missing or impossible.
    """
    number = spec.get("format_version")
    if type(number) is int and number in VERSIONS:
        return VERSIONS[number](spec)
    read = " and ".join(str(known) for known in sorted(VERSIONS))
    if type(number) is int and number > max(VERSIONS):
        advice = "a newer version of this program wrote it: install that one, or a newer one"
    else:
        advice = "no release of this program wrote it: use the program that did"
    raise UnsupportedFormat(f"format version {number!r}, this program reads {read}; {advice}")
