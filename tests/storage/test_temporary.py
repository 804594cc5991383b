"""Tables in temporary files: they take no memory, and go without harm."""

import sqlite3
import subprocess
import sys

import pytest

from storage.temporary import temporary_database


class Owner:
    pass


def test_a_temporary_database_is_closed_with_its_owner():
    owner = Owner()
    database = temporary_database(owner)
    database.execute("CREATE TABLE rows (row BLOB)")
    del owner
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT * FROM rows")


MEMORY = """
import resource
from storage.temporary import temporary_database

class Owner: pass

owner = Owner()
database = temporary_database(owner)
database.execute("CREATE TABLE rows (row INTEGER PRIMARY KEY, key BLOB UNIQUE)")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(400):
    database.executemany("INSERT INTO rows (key) VALUES (randomblob(1000))", [()] * 100)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_is_in_it_is_not_in_memory():
    found = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    before, after = map(int, found.stdout.split())
    assert after - before < 12_000  # KiB, of 80 MB


LEAVING = """
import sys, threading
from storage.temporary import temporary_database

class Owner: pass

owner = Owner()
database = temporary_database(owner)
database.execute("CREATE TABLE rows (row INTEGER)")
database.executemany("INSERT INTO rows VALUES (?)", ((number,) for number in range(200_000)))
begun = threading.Event()

def ask():
    while True:
        begun.set()
        database.execute("SELECT sum(row) FROM rows").fetchone()

threading.Thread(target=ask, daemon=True).start()
begun.wait()
sys.exit(143)
"""


def test_leaving_while_a_thread_asks_does_no_harm():
    for _ in range(10):
        assert subprocess.run([sys.executable, "-c", LEAVING], check=False).returncode == 143
