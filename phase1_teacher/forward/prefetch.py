"""An iterator that works ahead in a thread, so that the device does not wait for image decoding."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.2  # seconds between two checks whether the consumer has gone


class Prefetch(Generic[T]):
    """Runs `source` in a thread, at most `depth` items ahead; its exception is raised where the next item would be.

    Args:
        source: consumed only in the thread.
        depth: number of items held ready.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if item is None:
                if self._error is not None:
                    raise self._error
                return
            yield item[0]

    def close(self) -> None:
        """Let the thread end and drop what it still holds."""
        self._closed.set()

    def _run(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                if not self._put((item,)):
                    return
        except BaseException as error:  # noqa: BLE001 raised again by the consumer
            self._error = error
        self._put(None)

    def _put(self, item: tuple[T] | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False
