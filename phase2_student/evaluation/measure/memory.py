"""Peak memory of a block: on a GPU the memory that torch allocated, else the resident set of the process (Linux)."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures the peak over a `with` block, above what was in use before it.

    Afterwards `peak_bytes` is an int, or None if the system does not report it.
    """

    peak_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        self._gpu = torch.cuda.is_available()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before: int | None = torch.cuda.memory_allocated()
        else:
            _release_freed()
            try:
                _CLEAR.write_text("5")  # resets the peak of the resident set: proc(5)
                self._before = _resident("VmRSS")
            except OSError:
                self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self._gpu else _resident("VmHWM")
        if peak is not None and self._before is not None:
            self.peak_bytes = max(0, peak - self._before)


def _release_freed() -> None:
    """Return freed memory to the system; otherwise the block would use it without raising the peak."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def _resident(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
