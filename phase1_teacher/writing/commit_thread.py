"""The thread that writes: it commits the targets of finished forward passes while the device continues."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from phase1_teacher.forward.teacher import ForwardResult
from phase1_teacher.forward.unit_batches import UnitBatch
from phase1_teacher.planning.job import DumpJob
from phase1_teacher.writing.unit_results import UnitResults, unit_results

_DEPTH = 4  # forward passes whose results may wait
_POLL = 0.2  # seconds between two checks whether the thread has died


@dataclass(frozen=True)
class _Finished:
    batch: UnitBatch


class CommitThread:
    """Collects results by unit and commits each unit when its last batch is done.

    An exception in the thread is raised in the caller's thread at the next call, so that a full disk stops the dump.

    Args:
        job: from `prepare_dump`.
    """

    def __init__(self, job: DumpJob) -> None:
        self.units = 0
        """Number of units that this process committed."""
        self.samples = 0
        self.positions = 0
        self.skipped: list[str] = []
        """The reason for each skipped sample of these units."""
        self._job = job
        self._queue: queue.Queue[tuple[UnitBatch, ForwardResult] | _Finished | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._dropping = threading.Event()
        self._current: UnitResults | None = None
        self._since = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def add(self, batch: UnitBatch, result: ForwardResult) -> None:
        """Hand over the results of a forward pass of the batch. Raises the error that stopped the thread."""
        self._put((batch, result))

    def finish(self, batch: UnitBatch) -> None:
        """Report that all forward passes of the batch are done; the last batch of a unit commits the unit."""
        self._put(_Finished(batch))

    def close(self) -> None:
        """Wait until everything is committed. Raises the error that stopped the thread."""
        self._put(None)
        self._thread.join()
        self._raise()

    def abandon(self, seconds: float) -> None:
        """Drop what is not committed; a running commit gets this many seconds to end."""
        self._dropping.set()
        self._thread.join(seconds)

    def _put(self, item: tuple[UnitBatch, ForwardResult] | _Finished | None) -> None:
        while True:
            self._raise()
            try:
                self._queue.put(item, timeout=_POLL)
                return
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._dropping.is_set():
                try:
                    item = self._queue.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if item is None:
                    return
                self._handle(item)
        except BaseException as error:  # noqa: BLE001 raised again in the caller's thread
            self._error = error

    def _handle(self, item: tuple[UnitBatch, ForwardResult] | _Finished) -> None:
        batch = item.batch if isinstance(item, _Finished) else item[0]
        if self._current is None or self._current.unit is not batch.unit:
            self._current = unit_results(self._job, batch.unit)
        results = self._current
        if not isinstance(item, _Finished):
            results.add(item[1])
            return
        results.skipped.update(batch.skipped)
        results.refused.update(batch.refused)
        if batch.last:
            self._commit(results)

    def _commit(self, results: UnitResults) -> None:
        now = time.perf_counter()
        results.sums["seconds"], self._since = now - self._since, now  # this worker's time since its previous unit
        with self._job.writer.unit(results.unit) as out:
            results.fill(out)
        self._current = None
        if out.won:
            self.units += 1
            self.samples += len(results.unit) - len(results.skipped)
            self.skipped += results.skipped.values()
            self.positions += int(results.sums.get("positions", 0))
