"""Errors become one line."""

import sqlite3

import click
from click.testing import CliRunner

from firstsight.console import Commands
from storage.temporary import temporary_database


class Owner:
    pass


def test_no_room_for_a_temporary_file_is_one_line():
    @click.group(cls=Commands)
    def main():
        pass

    @main.command()
    def fill():
        owner = Owner()
        database = temporary_database(owner)
        database.execute("PRAGMA max_page_count = 3")  # as on a full disk
        database.execute("CREATE TABLE rows (row BLOB)")
        for _ in range(10):
            database.execute("INSERT INTO rows VALUES (zeroblob(4096))")

    @main.command()
    def mistake():
        temporary_database(Owner()).execute("SELECT nothing FROM nowhere")

    result = CliRunner().invoke(main, ["fill"])
    assert result.exit_code == 1
    assert result.output == ("error: temporary file: database or disk is full; point TMPDIR to a directory with room\n")
    assert isinstance(CliRunner().invoke(main, ["mistake"]).exception, sqlite3.Error)  # ours, not the user's
