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

from benchmarks.suite.result import Outcome, compared

ROOT = Path(__file__).parents[2]


def measured(command: Sequence[object]) -> dict[str, Any]:
    """The JSON object that a module of ours prints as its last line. CalledProcessError."""
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
        command: gives the module and the arguments for a variant.
        variants: names of the variants.
        repeats: number of turns.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for turn in range(repeats):
        for name in variants if turn % 2 == 0 else list(reversed(variants)):
            found[name].append(measured(command(name)))
    return found


def time_and_memory(
    name: str, what: str, baseline: str, mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> list[Outcome]:
    """The ratios of `seconds` and `bytes` of two variants.

    Args:
        name: name of the results, with `{}` for time or memory.
        what: what is measured.
        baseline: what it is compared with.
        mine: figures of `what`, turn by turn.
        theirs: figures of the baseline, turn by turn.
    """
    pairs = [([run["seconds"] for run in runs], [run["bytes"] / 1e6 for run in runs]) for runs in (mine, theirs)]
    (seconds, peaks), (their_seconds, their_peaks) = pairs
    return [
        compared(name.format("time"), what, baseline, mine=seconds, theirs=their_seconds, unit="s"),
        compared(name.format("memory"), what, baseline, mine=peaks, theirs=their_peaks, unit="MB"),
    ]
