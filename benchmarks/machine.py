"""The machine that figures belong to, and the peak of a process's memory; imports none of the packages that it names."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each, `missing` if there is none."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def commit() -> str:
    """The commit that is measured, with `+` if its code was changed since; `unknown` outside a repository.

    Pages and results do not count: the measurement itself writes them.
    """
    git = ["git", "-C", str(Path(__file__).parents[1])]
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!benchmarks/results"]
    try:
        done = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        if done.returncode:
            return "unknown"
        dirty = subprocess.run(changed, capture_output=True, check=False).returncode
    except OSError:
        return "unknown"
    return done.stdout.strip() + ("+" if dirty else "")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_mb() -> float:
    """Largest resident set of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the process that started this one as well
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return _largest(resource.RUSAGE_SELF)


def children_peak_mb() -> float:
    """Largest resident set of a process that this one has waited for, MB; 0 if there was none."""
    return _largest(resource.RUSAGE_CHILDREN)


def _largest(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss
    return resource.getrusage(who).ru_maxrss * unit / 1e6
