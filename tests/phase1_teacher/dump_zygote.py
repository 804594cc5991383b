"""Starts dumps by fork, with the imports and the teacher's weights already there; driven by test_kills.py through pipes.

Each line of stdin is a JSON object: {"config", "shard", "log"} starts a worker and answers its pid, {"wait": pid} answers
its exit code. A worker appends a line to its log for every forward pass: the unit, and for how many seconds it has been
committed already (null: it was not).
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from firstsight.models.loading import load_teacher
from firstsight.pair import load_pair
from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.workers import Stopped, parse_shard, stop_on_signals
from storage.units.manifest import manifest_path


def work(config: str, shard: str, log: str, model: object) -> int:
    """A worker; its exit code."""
    recipe = load_recipe(Path(config))
    run = TeacherForward.run
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counted(self, batch):
        manifest = Path(recipe.cache_location) / manifest_path(batch.unit.name)
        since = time.time() - manifest.stat().st_ctime if manifest.exists() else None
        os.write(file, (json.dumps([batch.unit.name, since]) + "\n").encode())
        time.sleep(0.01)
        return run(self, batch)

    TeacherForward.run = counted
    try:
        with stop_on_signals():
            dump(prepare_dump(recipe, progress=False), shard=parse_shard(shard), model=model, progress=False)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


def main(config: str) -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)
    recipe = load_recipe(Path(config))
    model = load_teacher(load_pair(recipe).directory, recipe.teacher)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = work(order["config"], order["shard"], order["log"], model)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
