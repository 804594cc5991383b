"""A measurement in a process of its own, so that peaks of memory are its own; several take turns.

figures = in_turns(lambda name: ["benchmarks.loss", "--one", name], ("cross-entropy", "fused"), repeats=3)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def measured(command: Sequence[object]) -> dict[str, Any]:
    """The JSON object that a module of ours prints in its last line. CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def in_turns(
    command: Callable[[str], Sequence[object]], variants: Sequence[str], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """What each variant measured, turn by turn; every other turn goes backwards.

    Args:
        command: module and arguments of a variant.
        variants: their names.
        repeats: turns.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for turn in range(repeats):
        for name in variants if turn % 2 == 0 else list(reversed(variants)):
            found[name].append(measured(command(name)))
    return found
