"""Shards, signals, and how a worker leaves."""

import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstsight.errors import RecipeError
from phase1_teacher.workers import Shard, parse_shard, shard_from_environment, work_order


@given(st.integers(0, 40), st.integers(1, 9))
def test_the_shards_of_all_workers_are_all_units_and_each_continues_with_the_rest(units, count):
    names = list(range(units))
    starts = []
    for index in range(count):
        order = work_order(names, Shard(index, count))
        assert sorted(order) == names
        own = units * (index + 1) // count - units * index // count
        starts += order[:own]
    assert sorted(starts) == names


def test_shards_of_the_command_line():
    assert parse_shard("2/3") == Shard(2, 3)
    for text in ("3/3", "1", "a/b", "-1/2", "0/0"):
        with pytest.raises(RecipeError, match=f"--shard {text}: expected i/n"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}, (1, 4)),
        # a sparse array, --array=1,5,7: a starting point only
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}, (0, 3)),
        (
            {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "3"},
            (2, 3),
        ),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, (5, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "3",
                "SLURM_NTASKS": "4",
            },
            (7, 8),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),
    ],
)
def test_shards_of_torchrun_and_slurm(environment, shard):
    assert shard_from_environment(environment) == Shard(*shard)


def test_a_shard_that_is_no_number_is_refused():
    with pytest.raises(RecipeError, match="environment variable RANK: expected a whole number, got 'x'"):
        shard_from_environment({"RANK": "x", "WORLD_SIZE": "2"})


SLEEPER = """
import sys, threading, time
{setup}
from phase1_teacher.workers import Stopped, stop_on_signals
try:
    with stop_on_signals(1.0):
        print("ready", flush=True)
        {body}
except Stopped as stopped:
    print("stopped by", stopped, flush=True)
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(
    ("setup", "body"),
    [
        ("", "time.sleep(60)"),
        # minutes of native work, in which the interpreter never gets to a signal handler
        (
            "import torch; torch.set_num_threads(1)",
            "torch.linalg.matrix_power(torch.ones(4000, 4000), 2**60 - 1)",
        ),
    ],
    ids=["waiting", "inside a long native call"],
)
def test_signals_end_the_process_within_its_deadline(number, setup, body):
    program = SLEEPER.format(setup=setup, body=body)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert setup or f"stopped by {number.name}" in out


SLOW = """
import sys, time
from firstsight.data.samples import Sample
from phase1_teacher.cli import main

def slow(self, path, open_image=Sample.open_image):
    print("opened", flush=True)
    time.sleep(1)
    return open_image(self, path)

Sample.open_image = slow
main(["dump", "--config", sys.argv[1], "--no-progress"])
"""


def test_a_dump_that_is_told_to_stop_does_not_wait_for_pictures(workshop):
    rows = workshop.rows(60, questions=1)[::2]  # images of one size
    for row in rows:
        row["messages"] = rows[0]["messages"]
    recipe = workshop.recipe(rows, cache={"unit_positions": 10_000}, teacher={"batch_tokens": 4096})  # one batch
    with subprocess.Popen([sys.executable, "-c", SLOW, str(recipe)], stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "opened\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
