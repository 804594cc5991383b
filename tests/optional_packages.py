"""Packages of the extras: a test that needs one is skipped where it is missing, and fails in CI, which has them all."""

import importlib
import os
from types import ModuleType

import pytest


def optional_package(name: str) -> ModuleType:
    """The imported package."""
    return importlib.import_module(name) if os.environ.get("FIRSTSIGHT_CI") == "1" else pytest.importorskip(name)
