"""What the GPU benchmark needs in addition to Python, torch and transformers, in one folder for a machine without a network.

    python -m benchmarks.gpu.carry make build/carry               # here: 64 MiB at most
    python -m benchmarks.gpu.carry unpack build/carry build/site  # there; then PYTHONPATH=build/site

`make` takes the oldest series that pyproject.toml declares, as wheels for CPython and Linux on x86-64, and removes all CUDA
libraries from bitsandbytes except those named. `unpack` leaves out what the machine has in the same or a newer version.
Only the standard library is used here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIMIT = 64 * 2**20
"""Maximum bytes of the folder."""
CUDA = ("12.6", "12.8", "12.9", "13.0")
"""Libraries that are kept: those of the CUDA versions that torch 2.11 and later are built with."""
_RESOLVED = (
    "pydantic",
    "zarr",
    "numcodecs",
    "pillow",
    "click",
    "pyyaml",
    "tqdm",
    "google-crc32c",
    "psutil",
    "rapidfuzz",
)
"""Taken with their dependencies."""
_ALONE = ("accelerate", "bitsandbytes")
"""Taken without their dependencies, which include torch."""
_THERE = ("numpy",)
"""Dependencies of torch or transformers, so the machine has them."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
              "manylinux2014_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64")  # fmt: skip
_CUDA_LIBRARY = re.compile(r"libbitsandbytes_(cuda|rocm|xpu)(\d*)\w*\.so$")


def oldest_series(pyproject: Path) -> dict[str, str]:
    """For each dependency, the requirement that pins it to the oldest series declared: `zarr>=3.1,<4` gives `zarr==3.1.*`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found = {}
    for text in project["dependencies"]:
        match = re.match(r"([\w.-]+)>=([\d.]+)", text)
        if match:
            found[match[1].lower()] = f"{match[1]}=={match[2]}.*"
    return found


def make(folder: Path, python: str, cuda: Sequence[str]) -> None:
    """Fill the folder. SystemExit if it grows past the limit."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    declared = oldest_series(Path(__file__).parents[2] / "pyproject.toml")
    for names, options in ((_RESOLVED, []), (_ALONE, ["--no-deps"])):
        wanted = [declared.get(name, name) for name in names]
        platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--dest",
            str(folder),
        ]
        command += ["--only-binary", ":all:", "--python-version", python, *platforms, *options, *wanted]
        subprocess.run(command, check=True)
    for wheel in sorted(folder.glob("*.whl")):
        name, _ = name_and_version(wheel)
        if name in _THERE:
            wheel.unlink()
        elif name == "bitsandbytes":
            strip(wheel, [number.replace(".", "") for number in cuda])
    check_size(folder)


def strip(wheel: Path, keep: Sequence[str]) -> None:
    """Remove the libraries of all accelerators except these CUDA versions (`128` is 12.8).

    Raises:
        SystemExit: the wheel has no library for one of them.
    """
    smaller = wheel.with_suffix(".tmp")
    kept = set()
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name in whole.namelist():
            library = _CUDA_LIBRARY.search(name)
            if library is not None:
                if library[1] != "cuda" or library[2] not in keep:
                    continue
                kept.add(library[2])
            out.writestr(name, whole.read(name))
    if missing := sorted(set(keep) - kept):
        smaller.unlink()
        sys.exit(f"{wheel.name} has no library for CUDA {', '.join(missing)}; name others with --cuda")
    smaller.replace(wheel)


def check_size(folder: Path) -> int:
    """Print and return the bytes of the folder. SystemExit above the limit."""
    sizes = {path: path.stat().st_size for path in sorted(folder.iterdir())}
    for path, size in sizes.items():
        print(f"{size / 2**20:6.1f} MiB  {path.name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.1f} MiB  in all, {len(sizes)} files in {folder}")
    if total > LIMIT:
        sys.exit(
            f"{folder} has {total / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}; keep fewer CUDA libraries (--cuda 12.8)"
        )
    return total


def unpack(folder: Path, site: Path) -> None:
    """Unpack what the machine lacks, so that it can be imported from `site`."""
    site.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(
            f"{folder} has no wheels; make them on a machine with a network: python -m benchmarks.gpu.carry make {folder}"
        )
    for wheel in wheels:
        name, number = name_and_version(wheel)
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        if installed is not None and _numbers(installed) >= _numbers(number):
            print(f"{name} {installed} is installed")
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        print(f"{name} {number} unpacked")


def name_and_version(wheel: Path) -> tuple[str, str]:
    """Name and version of a wheel, from its file name."""
    name, number, *_ = wheel.name.split("-")
    return name.lower().replace("_", "-"), number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.split("+")[0])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="download and strip the wheels")
    making.add_argument("folder", type=Path)
    making.add_argument("--python", default="3.12", help="Python version of the other machine (default 3.12)")
    making.add_argument(
        "--cuda", default=",".join(CUDA), help=f"CUDA versions, separated by commas (default {','.join(CUDA)})"
    )
    unpacking = commands.add_parser("unpack", help="make what is missing here importable")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("site", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.command == "make":
        make(chosen.folder, chosen.python, chosen.cuda.split(","))
    else:
        unpack(chosen.folder, chosen.site)


if __name__ == "__main__":
    main()
