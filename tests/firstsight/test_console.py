"""Errors become one line."""

import errno

import click
import pytest
from click.testing import CliRunner

from firstsight.console import Commands


def invoke(error):
    @click.group(cls=Commands)
    def main():
        pass

    @main.command()
    def fail():
        raise error

    return CliRunner().invoke(main, ["fail"])


def test_no_room_for_a_file_is_one_line():
    result = invoke(OSError(errno.ENOSPC, "No space left on device", "/tmp/a"))
    assert result.exit_code == 1
    assert result.output == "error: /tmp/a: No space left on device\n"


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), ZeroDivisionError()])
def test_our_own_mistakes_are_tracebacks(error):
    assert invoke(error).exception is error
