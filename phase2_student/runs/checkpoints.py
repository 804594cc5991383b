"""Checkpoints that can be trusted: sealed with the digests of their files, so that the newest complete one is found.

A checkpoint without a seal was interrupted; one with files that differ from the seal is damaged. A run resumes from neither:
transformers would take the highest number, and continue silently without the optimiser state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEAL = "checkpoint.sha256.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(directory: Path) -> None:
    """Write the digests of all files of a finished checkpoint, after the files are on disk."""
    files = _files(directory)
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = dict(
            zip(map(str, files), pool.map(lambda name: _digest(directory / name, sync=True), files), strict=True)
        )
    scratch = directory / f".{SEAL}.tmp"
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, directory / SEAL)
    for place in (directory, directory.parent):
        handle = os.open(place, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def fault(directory: Path) -> str | None:
    """Why a run cannot resume from a checkpoint; None if the checkpoint is complete."""
    try:
        sealed: dict[str, str] = json.loads((directory / SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError):
        return f"its {SEAL} cannot be read"
    present = set(map(str, _files(directory)))
    if missing := sorted(set(sealed) - present):
        return f"{missing[0]} is missing"
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: _digest(directory / name), sealed)
        changed = [name for name, digest in zip(sealed, digests, strict=True) if digest != sealed[name]]
    return f"{changed[0]} was changed" if changed else None


def lacking(directory: Path) -> str | None:
    """What an undamaged checkpoint lacks for a run to continue as if it had not been interrupted; None if nothing.

    Sharded runs keep the optimiser's state in directories, DeepSpeed all of it in one directory.
    """
    if any(directory.glob("global_step*")):
        return None
    needed = {
        "trainer_state.json": "the number of its step",
        "optimizer*": "the state of the optimiser",
        "scheduler.pt": "the state of the schedule",
        "rng_state*.pth": "the state of the random numbers",
    }
    missing = [words for pattern, words in needed.items() if not any(directory.glob(pattern))]
    return f"it lacks {', '.join(missing)}" if missing else None


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first."""
    return sorted(
        (path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=_step, reverse=True
    )


def newest_whole(output_dir: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and holds all that a run needs; None if there is none.

    Args:
        output_dir: the run's directory.
        report: called with a line for every checkpoint that is not used, with the reason.
    """
    for directory in checkpoints(output_dir):
        reason = fault(directory) or lacking(directory)
        if reason is None:
            return directory
        report(f"{directory} is not used: {reason}")
    return None


def keep_newest(output_dir: Path, count: int, *, step: int | None = None) -> None:
    """Delete all checkpoints except the newest `count` that are sealed; call it after one is sealed.

    Args:
        output_dir: the run's directory.
        count: 1 or more.
        step: of the checkpoint that was sealed just now; None: the newest. A run at this step did not resume from a later one, which
            was unfinished or damaged, so those are deleted as well.
    """
    found = checkpoints(output_dir)
    sealed = [path for path in found if (path / SEAL).is_file() and (step is None or _step(path) <= step)]
    for directory in reversed([path for path in found if path not in sealed[:count]]):
        (directory / SEAL).unlink(missing_ok=True)  # from here on it counts as unfinished
        shutil.rmtree(directory)


def _step(directory: Path) -> int:
    match = _NAME.fullmatch(directory.name)
    assert match is not None
    return int(match[1])


def _files(directory: Path) -> list[Path]:
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in files if name.name not in (SEAL, f".{SEAL}.tmp"))


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
