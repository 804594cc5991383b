"""Which container a file is, by its first bytes; its name decides only if they do not."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from firstsight.data.containers.arrow import ArrowDirectory, Parquet
from firstsight.data.containers.base import Container
from firstsight.data.containers.given import given_container
from firstsight.data.containers.hub import HubDataset
from firstsight.data.containers.json_array import JsonArray
from firstsight.data.containers.jsonl import GzipLines, JsonLines
from firstsight.data.containers.table import Table, suffixes
from firstsight.data.entries import GivenRows, HubSplit
from firstsight.errors import DataError
from firstsight.recipe_yaml import yaml_flow

_HEAD = 4096
_REFUSED = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it, or save the sheet as CSV",
    b"ARROW1": "an Arrow file; give the save_to_disk directory that holds it, or Parquet",
    b"BZh": "compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or use gzip",
}


def open_container(path: Path | HubSplit | GivenRows, name: str) -> Container:
    """The rows of a file, a directory, a hub dataset, or those that Python gave; only a file's first bytes are read here.

    Raises:
        DataError: it was not found, or is of a kind that is not supported; with what to do.
    """
    if isinstance(path, HubSplit):
        return HubDataset(path, name)
    if isinstance(path, GivenRows):
        return given_container(path, name)
    if path.is_dir():
        return _directory(path, name)
    if not path.is_file():
        raise DataError(f"data file {path} not found; check data.root and the file's name in the recipe")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    packed = head.startswith(b"\x1f\x8b")
    if packed:
        head = _unpacked(path, name)
    for magic, kind in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{name}: is {kind}")
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: is a tar archive; unpack it and give a JSONL file with the paths of its images")
    if head.startswith(b"PAR1"):
        if packed:
            raise DataError(f"{name}: is a gzip of a Parquet file; unpack it")
        return Parquet(path, name)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        return JsonArray(path, name)
    if first != b"{" and {".csv", ".tsv"} & suffixes(path):
        return Table(path, name)
    return GzipLines(path, name) if packed else JsonLines(path, name)


def _directory(path: Path, name: str) -> Container:
    as_hub = yaml_flow({"hub": name, "split": "train"})
    if (path / "state.json").is_file():
        return ArrowDirectory(path, name)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        if not splits:
            raise DataError(f"{name}: has a dataset_dict.json, but no split beside it; save it again")
        raise DataError(f"{name}: holds the splits {', '.join(splits)}; name one of them, such as {name}/{splits[0]}")
    if parts := sorted(path.glob("*.parquet")):
        kinds = {re.sub(r"[-_.]?\d+", "", part.stem) for part in parts}
        if len(kinds) > 1:
            raise DataError(
                f"{name}: holds Parquet files of different names ({', '.join(part.name for part in parts[:3])}, ...), perhaps splits; "
                f"list the files to read, or give {as_hub}"
            )
        return Parquet(path, name, parts)
    if next(path.rglob("*.parquet"), None):
        raise DataError(f"{name}: its Parquet files are in subdirectories; give one of these, or {as_hub}")
    raise DataError(
        f"{name}: is a directory, but not one of save_to_disk (no state.json) or of Parquet files; give a file, or "
        f"{as_hub} for a directory that datasets.load_dataset reads"
    )


def _unpacked(path: Path, name: str) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            return file.read(_HEAD)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{name}: is a damaged gzip file ({error}); create it again") from None
