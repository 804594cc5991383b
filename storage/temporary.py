"""Tables in temporary files: what would grow with the data if it lay in memory."""

from __future__ import annotations

import sqlite3
import weakref


def temporary_database(owner: object) -> sqlite3.Connection:
    """A database in a file of its own that has no name; 2 MB of it are held in memory, whatever is in it.

    It is closed and gone when `owner` is. SQLite takes the directory from SQLITE_TMPDIR or TMPDIR, else /var/tmp or /tmp.
    Threads may use it in turns.

    Raises:
        sqlite3.OperationalError: here or later: there is no room for the file.
    """
    database = sqlite3.connect("", check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    # not at exit: a thread that the interpreter leaves behind may be inside a query
    weakref.finalize(owner, database.close).atexit = False
    return database
