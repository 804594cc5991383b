"""The GPU, its driver and the versions that a row belongs to."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.machine import cores, versions

_PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "zarr", "numcodecs", "numpy", "pillow")
_OPTIONAL = ("torchvision", "flash_attn")


def ready(*, tiny: bool) -> torch.device:
    """The device to measure on; its libraries are made quiet.

    Raises:
        click.ClickException: no GPU, and not `tiny`.
    """
    for name in ("bitsandbytes", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # so that the rows stay readable
    choose_cuda_library()
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if not tiny:
        raise click.ClickException("no GPU that torch can use; --tiny runs the whole script at a small size on a CPU")
    return torch.device("cpu")


def choose_cuda_library() -> None:
    """If bitsandbytes has no library for torch's CUDA, make it use the newest one of the same major version.

    `carry.py` takes only some of its libraries along; within a major version they run with each other's CUDA.
    """
    found = find_spec("bitsandbytes")
    if torch.version.cuda is None or found is None or not found.submodule_search_locations:
        return
    major, minor = torch.version.cuda.split(".")[:2]
    libraries = Path(found.submodule_search_locations[0]).glob("libbitsandbytes_cuda*.so")
    have = sorted(path.stem.removeprefix("libbitsandbytes_cuda") for path in libraries)
    alike = [name for name in have if name[:-1] == major]
    if f"{major}{minor}" not in have and alike:
        os.environ.setdefault("BNB_CUDA_VERSION", alike[-1])


def facts(device: torch.device) -> dict[str, Any]:
    """GPU, driver and versions."""
    found: dict[str, Any] = {}
    if device.type == "cuda":
        shape = torch.cuda.get_device_properties(device)
        found["GPU"] = (
            f"{shape.name}, {shape.total_memory / 1e9:.1f} GB, compute capability {shape.major}.{shape.minor}"
        )
        found["driver"] = _driver()
        found["CUDA of torch"] = str(torch.version.cuda)
    else:
        found["GPU"] = "none"
    found["CPU cores"] = cores()
    found["Python"] = platform.python_version()
    found |= versions(_PACKAGES)
    for name in _OPTIONAL:
        found[name] = "installed" if find_spec(name) else "not installed"
    found["float32 matmul"] = torch.get_float32_matmul_precision()
    return found


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
