"""Trains one recipe again and again in forked children and kills them, until one run ends. A script of test_resume.py.

    python kill_runs.py RECIPE KILLS SEED     # prints one JSON object: {"kills", "recomputed", "steps"}

A child starts in a fraction of a second, because this process has imported everything; it is killed like any process.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import transformers.trainer
from transformers import TrainerCallback

import phase2_student.training.trainer  # noqa: F401 - imported once, before the children
from firstsight.recipe import load_recipe
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train


class StepLog(TrainerCallback):
    """Writes the number of every finished step into a pipe."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_step_end(self, _args, state, _control, **_):
        os.write(self.pipe, f"{state.global_step}\n".encode())


def attempt(recipe, kill_at, number, delay):
    """Train in a child; send it signal `number` `delay` s after step `kill_at`. Returns (steps it did, whether it ended)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(
            1
        )  # torch makes its thread pool anew after a fork, not safely if two threads ask for it at once
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        transformers.trainer.DEFAULT_CALLBACKS.append(StepLog(writer))
        try:
            os._exit(0 if train(prepare(recipe, progress=False)).finished else 3)
        except Exception as error:  # noqa: BLE001 - the parent tells
            os.write(writer, f"error {error!r}\n".encode())
            os._exit(1)
    os.close(writer)
    steps, killed = [], False
    with os.fdopen(reader) as pipe:
        for line in pipe:
            if line.startswith("error"):
                raise RuntimeError(line)
            steps.append(int(line))
            if kill_at is not None and steps[-1] >= kill_at and not killed:
                time.sleep(delay)
                os.kill(child, number)
                killed = True
    _, status = os.waitpid(child, 0)
    return steps, status == 0


def main(path, kills, seed):
    torch.set_num_threads(1)
    rng = random.Random(seed)
    recipe = load_recipe(Path(path))
    save_steps = recipe.training["save_steps"]
    done, recomputed, reached, ended = 0, [], 0, False
    for count in range(kills * 4 + 1):
        # every fourth is asked to stop; every fourth dies some milliseconds after a step that saves, in the middle of it
        number = signal.SIGTERM if count % 4 == 1 else signal.SIGKILL
        step = reached + rng.randint(1, save_steps + 1) if done < kills else None
        if step is not None and count % 4 == 2:
            step = -(-step // save_steps) * save_steps
        steps, ended = attempt(recipe, step, number, rng.uniform(0, 0.25) if count % 4 == 2 else rng.uniform(0, 0.05))
        if steps:
            if done:
                recomputed.append(max(0, reached - steps[0] + 1))
            reached = max(reached, steps[-1])
        if ended:
            break
        done += 1
    print(json.dumps({"kills": done, "recomputed": recomputed, "steps": reached, "ended": ended}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
