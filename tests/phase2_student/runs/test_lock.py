"""One owner per run directory: who it is, when it counts as gone, and what a second process is told."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from run_cases import run

from firstsight.errors import TrainingError
from phase2_student.runs import lock
from phase2_student.runs.lock import LOCK, RunInUse, run_lock


def put(directory, **changed):
    """The lock of a living process, this one, with changes."""
    directory.mkdir(exist_ok=True)
    owner = {**vars(lock._me()), **changed}
    (directory / LOCK).write_text(json.dumps(owner))
    return owner


def make_old(directory, seconds):
    then = time.time() - seconds
    os.utime(directory / LOCK, (then, then))


def ended():
    """The number and the begin of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begin = lock._process(child.pid)
    child.communicate(b"\n")
    return {"pid": child.pid, "started": begin}


def test_a_lock_names_its_owner_and_goes_with_it(tmp_path):
    with run_lock(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / LOCK).read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
        words = rf"run is in use by process {os.getpid()} on {socket.gethostname()} since "
        with pytest.raises(RunInUse, match=words), run_lock(tmp_path / "run"):
            pytest.fail("two owners")
        assert json.loads((tmp_path / "run" / LOCK).read_text()) == owner
    assert not (tmp_path / "run").exists()  # nothing was written there


def test_what_was_written_stays(tmp_path):
    with run_lock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("owner", "age", "gone"),
    [
        ({}, 0, False),
        ({"host": "elsewhere"}, 0, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, 500, False),  # whether that process lives cannot be told from here
        ({"host": "elsewhere"}, 601, True),
        ({}, 601, True),  # the process may hang, or the machine has slept
        ({"pid": 2**22 + 1}, 0, True),
        ({"started": "1"}, 0, True),  # another process has its number now
        ({"pid": 1, "space": "pid:[1]"}, 0, False),  # of another container on this host
        ("ended", 0, True),
    ],
)
def test_an_owner_is_gone_when_it_is_dead_or_silent(tmp_path, capsys, owner, age, gone):
    put(tmp_path, **(ended() if owner == "ended" else owner))
    make_old(tmp_path, age)
    if gone:
        with run_lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert "taken over from process" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(RunInUse, match="is in use by process"), run_lock(tmp_path):
            pytest.fail("two owners")


def test_a_process_that_was_not_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begin = lock._process(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    while lock._process(child.pid) is not None:
        time.sleep(0.01)
    put(tmp_path, pid=child.pid, started=begin)
    with run_lock(tmp_path):
        pass
    child.communicate()


def test_a_lock_that_cannot_be_read_is_another_process_until_it_is_old(tmp_path):
    (tmp_path / LOCK).write_text('{"host"')
    with pytest.raises(RunInUse, match="in use by another process"), run_lock(tmp_path):
        pytest.fail("two owners")
    make_old(tmp_path, 700)
    with run_lock(tmp_path):
        pass


def test_it_gives_signs_of_life_and_notices_that_it_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with run_lock(tmp_path) as mine:
        make_old(tmp_path, 500)
        deadline = time.monotonic() + 20
        while time.time() - (tmp_path / LOCK).stat().st_mtime > 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 100
        mine.check()
        other = put(tmp_path, token="another", pid=7)
        while mine.lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(TrainingError, match="taken over by process 7 on"):
            mine.check()
    assert json.loads((tmp_path / LOCK).read_text()) == other


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(RunInUse), run_lock(tmp_path):
            pytest.fail("two owners")


def test_of_many_that_take_over_one_wins(tmp_path):
    put(tmp_path, pid=2**22 + 1)
    code = (
        "import sys, time; from pathlib import Path; from phase2_student.runs.lock import run_lock, RunInUse\n"
        "try:\n    with run_lock(Path(sys.argv[1])): print('mine', flush=True); time.sleep(2)\n"
        "except RunInUse as error: print('refused')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    said = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert said == ["mine", *["refused"] * 4]


# ---- the commands ----

QUICK = ["--no-progress", "--set", "training.max_steps=2"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_second_training_is_refused_with_the_owner_and_changes_nothing(world, overwrite):
    assert run("train", "--config", world / "recipe.yaml", *QUICK).exit_code == 0
    directory = world / "runs" / "a"
    (directory / "final").rename(world / "final")  # as if it were still going
    put(directory, host="node7", pid=4321)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    again = run("train", "--config", world / "recipe.yaml", *QUICK, *overwrite)
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1
    assert "runs/a is in use by process 4321 on node7 since " in again.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before
    (directory / LOCK).unlink()
    assert run("train", "--config", world / "recipe.yaml", *QUICK).exit_code == 0
    assert not (directory / LOCK).exists()


def test_a_finished_run_needs_no_owner(world):
    assert run("train", "--config", world / "recipe.yaml", *QUICK).exit_code == 0
    put(world / "runs" / "a", host="node7")
    again = run("train", "--config", world / "recipe.yaml", *QUICK)
    assert again.exit_code == 0
    assert "is finished: 2 steps" in again.output


def test_a_sweep_leaves_the_run_of_another_process_alone(world):
    command = ["sweep", "--config", world / "recipe.yaml", *QUICK, "--grid", "temperature=1.5,2"]
    put_at = world / "runs" / "a" / "temperature=1.5"
    put_at.mkdir(parents=True)
    put(put_at, host="node7")
    done = run(*command)
    assert done.exit_code == 1
    assert "[1/2] temperature=1.5: failed: training.output_dir: " in done.stderr
    assert "is in use by process" in done.stderr
    assert "[2/2] temperature=2: 2 steps in" in done.output
    assert [path.name for path in put_at.iterdir()] == [LOCK]


def test_a_disk_that_is_away_for_a_while_does_not_end_the_signs_of_life(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    real, away = lock._read, iter([OSError(errno.ESTALE, os.strerror(errno.ESTALE))])

    def read(path):
        for error in away:
            raise error
        return real(path)

    with run_lock(tmp_path / "run") as held:
        monkeypatch.setattr(lock, "_read", read)
        make_old(tmp_path / "run", 500)
        until = time.monotonic() + 10
        while time.time() - (tmp_path / "run" / LOCK).stat().st_mtime > 400:
            assert time.monotonic() < until
            time.sleep(0.01)
        held.check()
    assert "the lock could not be touched: Stale file handle" in capsys.readouterr().err


def test_a_process_that_was_stopped_for_long_finds_out_at_its_next_step(tmp_path):
    with run_lock(tmp_path / "run") as held:
        put(tmp_path / "run", token="another", pid=7)
        held.check()  # it has just given a sign of life
        held._signed -= lock.STALE + 1
        with pytest.raises(TrainingError, match="was taken over by process 7 on "):
            held.check()
    with run_lock(tmp_path / "other") as held:
        (tmp_path / "other" / LOCK).unlink()  # taken over, and given up again
        held._signed -= lock.STALE + 1
        with pytest.raises(TrainingError, match="was taken over by another process, which has ended since"):
            held.check()
        assert not (tmp_path / "other" / LOCK).exists()
