"""Energy of a block: the power that the GPU reports, times the time. None on a CPU, or if the GPU does not report power."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import threading
import time

import torch

_PERIOD = 0.05
"""Seconds between two readings; GPUs update their value every 0.02 to 0.2 s."""


class EnergyMeter:
    """Measures a `with` block in a thread of its own.

    Afterwards `joules` is the energy of the whole GPU, idle power included; None if it is not known.
    """

    joules: float | None = None

    def __enter__(self) -> EnergyMeter:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._begin = time.perf_counter()
        first = power()
        if first is not None:
            self._watts = [first]
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._begin
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        self.joules = statistics.fmean(self._watts) * seconds

    def _read(self) -> None:
        while not self._done.wait(_PERIOD):
            watts = power()
            if watts is not None:
                self._watts.append(watts)


def power() -> float | None:
    """Power of the current GPU in watts; None without a GPU, or if it does not report power (NVML through nvidia-ml-py)."""
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.power_draw() / 1e3
    except _unknown_power():
        return None


def _unknown_power() -> tuple[type[Exception], ...]:
    """The errors that torch raises without nvidia-ml-py, without a driver, and on a GPU without the sensor."""
    errors: tuple[type[Exception], ...] = (ImportError, RuntimeError, OSError)
    if importlib.util.find_spec("pynvml") is not None:
        errors += (importlib.import_module("pynvml").NVMLError,)
    return errors
