"""Files and directories that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, overload

from firstsight.errors import DataError


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that holds a `dict` or a `list`. Raises DataError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); the file is damaged") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, got {type(content).__name__}")
    return content


def copy_files(source: Path, target: Path, *, leave_out: Container[str] = ()) -> None:
    """Copy all files of a directory and those below it; the copies have the modes of new files.

    Args:
        source: the directory.
        target: an existing directory.
        leave_out: names of files and directories in `source` itself.
    """
    for path in sorted(source.iterdir()):
        if path.name in leave_out:
            continue
        if path.is_dir():
            (target / path.name).mkdir(exist_ok=True)
            copy_files(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def give_usual_modes(directory: Path) -> None:
    """Give all files of a directory, and below it, the modes of new files: safetensors lets only the owner read its files."""
    allowed = directory.stat().st_mode & 0o666  # what the umask allowed when the directory was made
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(allowed)


@overload
def replace_directory(path: Path, write: Callable[[Path], None]) -> None: ...
@overload
def replace_directory(path: Path, write: Callable[[Path | None], None], *, main: bool) -> None: ...
def replace_directory(path: Path, write: Callable[..., None], *, main: bool = True) -> None:
    """Fill a new directory with `write`, then put it in the place of `path`.

    Args:
        path: where the directory goes.
        write: fills the directory that it receives.
        main: this process writes; in other processes `write` is called without a directory, to take part.
    """
    if not main:
        write(None)
        return
    scratch = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write(scratch)
    give_usual_modes(scratch)
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(scratch, path)
        shutil.rmtree(old)
    else:
        os.replace(scratch, path)
