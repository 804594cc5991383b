"""Errors become one line."""

import errno
import sys

import click
import pytest
from click.testing import CliRunner

from firstsight.console import Commands, Heartbeat, heartbeat, progress_option
from firstsight.models.gpus import bytes_text


def invoke(error):
    @click.group(cls=Commands)
    def main():
        pass

    @main.command()
    def fail():
        raise error

    return CliRunner().invoke(main, ["fail"])


@pytest.mark.parametrize(("rank", "runs"), [("0", True), ("1", False), (None, True)])
def test_a_command_for_one_process_is_done_by_the_first(monkeypatch, rank, runs):
    @click.group(cls=Commands, several=("shared",))
    def main():
        pass

    for name in ("shared", "alone"):
        main.command(name)(lambda name=name: click.echo(f"{name} ran"))

    @main.group(cls=Commands)
    def inner():
        pass

    inner.command("deep")(lambda: click.echo("deep ran"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert CliRunner().invoke(main, ["shared"]).output == "shared ran\n"
    for arguments, name in ((["alone"], "alone"), (["inner", "deep"], "deep")):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0
        said = f"process 1 of 2: {name} is the work of one process, and process 0 does it\n"
        assert result.output == (f"{name} ran\n" if runs else said)


def test_what_the_phases_share_among_processes():
    from firstsight.cli import main as firstsight
    from phase1_teacher.cli import main as fs_teacher
    from phase2_student.cli import main as fs_student

    assert fs_teacher.several == {"dump", "derive"}
    assert fs_student.several == {"train", "sweep"}
    assert firstsight.several == set()
    for group in (fs_teacher, fs_student):
        assert group.several <= group.commands.keys()


def test_no_room_for_a_file_is_one_line():
    result = invoke(OSError(errno.ENOSPC, "No space left on device", "/tmp/a"))
    assert result.exit_code == 1
    assert result.output == "Error: /tmp/a: No space left on device\n"


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), ZeroDivisionError()])
def test_our_own_mistakes_are_tracebacks(error):
    assert invoke(error).exception is error


def test_a_sign_of_life():
    assert heartbeat(250, 1000, 2.5, {"loss": 1.23456, "data_wait": 0.051}) == (
        "step 250 of 1,000 (25%), 2.5 steps/s, ETA 0:05:00, loss 1.235, waiting for data 5%"
    )
    assert heartbeat(5, 1000, 0.0, {}) == "step 5 of 1,000 (0%), 0 steps/s, ETA unknown"
    assert heartbeat(1, 10**9, 1e-3, {}).endswith("ETA unknown")
    assert heartbeat(7, None, 0.5, {}, "timed answer") == "timed answer 7, 0.5 timed answers/s"
    assert heartbeat(0, 0, 0.0, {}) == "step 0 of 0 (0%), 0 steps/s, ETA unknown"


def test_signs_of_life_come_in_their_time_and_count_waiting(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def slow():
        for item in "abc":
            now[0] += 10
            yield item

    beats = Heartbeat(200, unit="sample", label="teacher", done=100)
    for _ in beats.waiting(slow()):
        now[0] += 5
        assert beats.beat(110) is None
    now[0] = 80
    line = "teacher: sample 120 of 200 (60%), 0.25 samples/s, ETA 0:05:20, waiting for data 38%"
    assert beats.beat(120) == line
    assert capsys.readouterr().err == f"{line}\n"
    now[0] = 150
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert beats.beat(134, {"loss": 2.0}) == "teacher: sample 134 of 200 (67%), 0.2 samples/s, ETA 0:05:30, loss 2"
    assert capsys.readouterr().err == ""  # there is a bar


@pytest.mark.parametrize(("given", "shown"), [([], False), (["--progress"], True), (["--no-progress"], False)])
def test_bars_are_for_terminals_unless_asked_for(given, shown):
    @click.command()
    @progress_option
    def command(progress):
        click.echo(progress)

    assert CliRunner().invoke(command, given).output == f"{shown}\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.5, "1 kB"),
        (17_712_345_678, "17.7 GB"),
        (999_700_000, "1 GB"),
        (2e18, "2,000.0 PB"),
    ],
)
def test_bytes_are_printed_in_decimal_units(count, text):
    assert bytes_text(count) == text
