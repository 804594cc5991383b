"""Named points between two steps of a commit, where a crash test may kill the process."""

from __future__ import annotations

import os
import signal

VARIABLE = "FIRSTSIGHT_FAILPOINT"


def failpoint(name: str) -> None:
    """Do nothing, unless the environment names this point: then SIGKILL this process."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
