"""Files and directories that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


@overload
def replace_directory(path: Path, write: Callable[[Path], None]) -> None: ...
@overload
def replace_directory(path: Path, write: Callable[[Path | None], None], *, main: bool) -> None: ...
def replace_directory(path: Path, write: Callable[..., None], *, main: bool = True) -> None:
    """Fill a new directory by `write` and put it in place of `path`.

    Args:
        path: of the directory.
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
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(scratch, path)
        shutil.rmtree(old)
    else:
        os.replace(scratch, path)
