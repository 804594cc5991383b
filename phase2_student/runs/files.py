"""Files and directories that are there whole or not at all."""

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
    """A JSON file that holds a `dict` or a `list`; DataError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); the file was damaged") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, got {type(content).__name__}")
    return content


def copy_files(source: Path, target: Path, *, leave_out: Container[str] = ()) -> None:
    """Copies of all files of a directory and those below it; their modes are those of new files.

    Args:
        source: the directory.
        target: a directory that exists.
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
    """Let the files of a directory, and of those below it, have the modes of new files: safetensors writes for its owner alone."""
    allowed = directory.stat().st_mode & 0o666  # as the umask left it when the directory was made
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(allowed)


@overload
def replace_directory(path: Path, write: Callable[[Path], None]) -> None: ...
@overload
def replace_directory(path: Path, write: Callable[[Path | None], None], *, main: bool) -> None: ...
def replace_directory(path: Path, write: Callable[..., None], *, main: bool = True) -> None:
    """Fill a new directory by `write` and put it in place of `path`.

    Args:
        path: where the directory goes.
        write: fills the directory that it is given.
        main: this process writes; else `write` is called without a directory, to take part.
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
