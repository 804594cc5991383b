"""How long the calls of one function take while something larger runs.

with timed_calls(TeacherForward, "_self_check") as seconds:
    dump(job)
print(sum(seconds))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def timed_calls(owner: Any, name: str, synchronize: Callable[[], object] = lambda: None) -> Iterator[list[float]]:
    """Inside the block, the seconds of each call of a function or method are put into the list.

    Args:
        owner: module or class.
        name: name of the function.
        synchronize: waits for the device.
    """
    original, seconds = getattr(owner, name), list[float]()

    def call(*args: Any, **options: Any) -> Any:
        synchronize()
        begin = time.perf_counter()
        result = original(*args, **options)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        return result

    with patch.object(owner, name, call):
        yield seconds
