"""What the GPU benchmark needs beside Python, torch and transformers, in one folder for a machine without a network.

    python -m benchmarks.gpu.carry make build/carry               # here: 64 MiB at most
    python -m benchmarks.gpu.carry unpack build/carry build/site  # there; then PYTHONPATH=build/site

`make` takes the oldest series that pyproject.toml declares, as wheels for CPython and Linux on x86-64, and leaves out of
bitsandbytes all CUDA libraries but those named. `unpack` leaves out what the machine has in the same or a newer version.
The standard library alone is used here.
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
"""Bytes of the folder."""
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
"""Taken with what they depend on."""
_ALONE = ("accelerate", "bitsandbytes")
"""Taken without: they would bring torch."""
_THERE = ("numpy",)
"""Torch's or transformers' own, so the machine has it."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
              "manylinux2014_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64")  # fmt: skip
_CUDA_LIBRARY = re.compile(r"libbitsandbytes_(cuda|rocm|xpu)(\d*)\w*\.so$")


def oldest_series(pyproject: Path) -> dict[str, str]:
    """By name, the requirement that holds a dependency in the oldest series declared: `zarr>=3.1,<4` is `zarr==3.1.*`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found = {}
    for text in project["dependencies"]:
        match = re.match(r"([\w.-]+)>=([\d.]+)", text)
        if match:
            found[match[1].lower()] = f"{match[1]}=={match[2]}.*"
    return found


def make(folder: Path, python: str, cuda: Sequence[str]) -> None:
    """Fill the folder. SystemExit where it grows past the limit."""
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
    """Leave out the libraries of all accelerators but these CUDA versions (`128` is 12.8).

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
    """Bytes of the folder, shown. SystemExit above the limit."""
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
    """What the machine lacks, ready to be imported from `site`."""
    site.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(
            f"{folder} has no wheels; make them where there is a network: python -m benchmarks.gpu.carry make {folder}"
        )
    for wheel in wheels:
        name, number = name_and_version(wheel)
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        if installed is not None and _numbers(installed) >= _numbers(number):
            print(f"{name} {installed} is there")
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        print(f"{name} {number} unpacked")


def name_and_version(wheel: Path) -> tuple[str, str]:
    """From the file's name."""
    name, number, *_ = wheel.name.split("-")
    return name.lower().replace("_", "-"), number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.split("+")[0])))


def main(arguments: Sequence[str] | None = None) -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="download and strip the wheels")
    making.add_argument("folder", type=Path)
    making.add_argument("--python", default="3.12", help="of the other machine (default 3.12)")
    making.add_argument(
        "--cuda", default=",".join(CUDA), help=f"versions with commas between (default {','.join(CUDA)})"
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
