"""A log on this machine's disk that is shipped to an object store piece by piece."""

import fcntl
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from schemas.errors import LimbeckError
from services.journal.frame import Frame
from services.journal.store import Store, first_line
from services.journal.writer import JournalWriter

SEAL_S, SEAL_BYTES = 5.0, 32 * 2**20  # a log is shipped at this age or size


class SealingWriter(JournalWriter):
    """Appends to a log on this machine, and ships it in the background once it is old or large enough.

    A log is locked while it is appended to, so that whoever finds it knows whether its writer lives.
    """

    def __init__(self, logs: Path, name: str, store: Store) -> None:
        self._name, self._number, self._store = name, 0, store
        self._shipping = ThreadPoolExecutor(1)
        self._shipped: list[Future[None]] = []
        super().__init__(logs, f"{name}.0000")
        self._begin()

    def _begin(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        while not os.fstat(self._file).st_nlink:  # found and removed between its creation and the lock
            os.close(self._file)
            self._open(self.path.name.removesuffix(".seg"))
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size, self._begun = 0, time.monotonic()

    def append(self, frame: Frame) -> int:
        size = super().append(frame)
        self._size += size
        if self._size >= SEAL_BYTES:
            self._seal()
        return size

    def tend(self, in_flight: int) -> bool:
        if self._size and time.monotonic() - self._begun >= SEAL_S:
            self._seal()
        self._require_shipped(wait=False)
        return super().tend(in_flight)

    def _seal(self) -> None:
        """Go on in a new log; the old one is shipped meanwhile."""
        full, path = self._file, self.path
        self._number += 1
        self._open(f"{self._name}.{self._number:04d}")
        self._begin()
        self._shipped.append(self._shipping.submit(self._ship, full, path))

    def _ship(self, log: int, path: Path) -> None:
        """Seal a log, and only then let go of its lock."""
        try:
            self._store.put(path)
        finally:
            os.close(log)

    def _require_shipped(self, wait: bool) -> None:
        """`LimbeckError` where a log could not be shipped; it is still on this machine's disk."""
        for future in [f for f in self._shipped if wait or f.done()]:
            self._shipped.remove(future)
            try:
                future.result()
            except OSError as error:
                what = f"journal {self._store.url}: {first_line(error)}"
                raise LimbeckError(what, "run again when the store answers: the log was kept") from None

    def sync(self) -> None:
        """Return once everything that was appended is sealed."""
        if self._size:
            self._seal()
        self._require_shipped(wait=True)

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._shipping.shutdown()
            if not self._size:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            os.close(self._lock)
