"""Trains runs that are interrupted, each in its own way, and compares their ends with an undisturbed one. A script of test_resume.py.

    python interrupt_runs.py RECIPE RUNS SEED     # prints one JSON object per run

A run is interrupted once to three times by SIGINT, SIGTERM or SIGKILL, at random steps, in the middle of saving too. Between
two attempts nothing changes, or the cache grows by others' samples: then the weights are equal. Or the batch is split
otherwise, or activations are kept instead of computed again: then sums change their order, and weights are near.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch
from kill_runs import attempt
from safetensors.torch import load_file

from firstsight.recipe import load_recipe
from phase2_student.runs.history import read_history

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
SPLITS = [(1, 4), (2, 2), (4, 1)]
KINDS = ("cache", "split", "nothing", "checkpointing")


def settings(kind, number):
    """What attempt `number` of a run of this kind says otherwise."""
    if kind == "split":
        size, accumulation = SPLITS[number % 3]
        return [f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={accumulation}"]
    if kind == "checkpointing":
        return [f"training.gradient_checkpointing={str(number % 2 == 1).lower()}"]
    return []


def grow(place, number):
    """Others add samples to the cache."""
    from firstsight.demo.synth.writing import write_dataset
    from phase1_teacher.dump import dump, prepare_dump

    child = os.fork()  # threads of torch in this process would be missing in the trainings that are forked from it
    if child == 0:
        try:
            write_dataset(place / f"more{number}", train=3, validation=1, seed=100 + number, progress=False)
            recipe = load_recipe(place / "recipe.yaml", [f"data.root=more{number}"])
            dump(prepare_dump(recipe, progress=False), progress=False)
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - the parent tells that it failed
            print(repr(error), file=sys.stderr)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the cache did not grow"


def difference(one, two):
    """The largest one between two students' weights, relative where they are larger than 1; 0: all bits are equal."""
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() == b.keys()
    if all(torch.equal(a[name], b[name]) for name in a):
        return 0.0
    return max(float(((a[name] - b[name]).abs() / b[name].abs().clamp(min=1)).max()) for name in a)


def told(directory):
    """What a history tells, without times."""
    rows = read_history(directory).epochs
    return [(row["epoch"], row["step"], row["steps"], row["validation"], row["train"]) for row in rows]


def gap(one, two):
    """The largest relative difference of two histories; infinite where they tell of other steps."""
    worst = 0.0
    if [row[:3] for row in one] != [row[:3] for row in two]:
        return float("inf")
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "kd", "ce", "agreement"):
            for part in (3, 4):
                worst = max(worst, abs(a[part][name] - b[part][name]) / abs(b[part][name] or 1.0))
    return worst


def interrupted(place, kind, rng, number):
    """One run to its end; what happened to it, and how it differs from the undisturbed one."""
    output = place / "runs" / f"r{number}"
    wanted, signals, done, ended = rng.randint(1, 3), [], 0, False
    count = 0
    while not ended:
        recipe = load_recipe(place / "recipe.yaml", [f"training.output_dir={output}", *settings(kind, count)])
        name = rng.choice(list(SIGNALS))
        at = done + rng.randint(1, 4) if len(signals) < wanted else None
        steps, ended = attempt(recipe, at, SIGNALS[name], rng.uniform(0, 0.2))
        if not ended:
            signals.append(name)
            if kind == "cache":
                grow(place, 10 * number + count)
        done = max([done, *steps])
        count += 1
    whole = place / "runs" / "whole"
    return {
        "kind": kind,
        "signals": signals,
        "final": difference(output / "final", whole / "final"),
        "best": difference(output / "best", whole / "best"),
        "history": gap(told(output), told(whole)),
    }


def main(path, runs, seed):
    torch.set_num_threads(1)
    rng = random.Random(seed)
    place = Path(path).parent
    undisturbed = load_recipe(place / "recipe.yaml", [f"training.output_dir={place / 'runs' / 'whole'}"])
    assert attempt(undisturbed, None, 0, 0.0)[1]
    for number in range(runs):
        print(json.dumps(interrupted(place, KINDS[number % len(KINDS)], rng, number)), flush=True)
        shutil.rmtree(place / "runs" / f"r{number}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
