"""Append frames to a segment of one's own."""

import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path

from schemas.errors import LimbeckError, SpecError
from services.journal.frame import Frame, encode

LOCK = ".writers"
LOW_DISK = 16 * 2**20
RESERVE = 4 * 2**20  # held for the answers in flight, should somebody else fill the disk between two looks at it
BYTES_AN_ANSWER = 64_000  # generously: 4.3 kB is usual
GONE_WITHIN_S = 20.0  # Ray ends the actors of a killed driver in a few seconds; three times the worst seen here


class JournalWriter:
    """The only writer of its segment.

    `append` returns after `write(2)`: from then on a `kill -9` of any process loses nothing (measured: 0 of 20
    kills lost a record, against 20 of 20 through a buffered file). `sync` adds the disk itself, for power loss.
    While it is open it holds a shared lock on the journal, so that a new start of the run can wait for it to go.
    """

    def __init__(self, root: Path, name: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(root / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._root = root
        self._reserve: int | None = None
        try:
            self._reserve = _reserve(root)
            self._open(name)
        except (OSError, LimbeckError):  # whoever tries again in this process must not find the lock held
            self._give_up_reserve()
            os.close(self._lock)
            raise

    def _open(self, name: str) -> None:
        self.path = self._root / f"{name}.seg"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)

    def append(self, frame: Frame) -> int:
        """Write one frame, return its bytes; a full disk or a failing one raises `LimbeckError` and nothing more may be
        sent."""
        data = memoryview(encode(frame))
        size = len(data)
        try:
            while data:
                try:
                    data = data[os.write(self._file, data) :]
                except OSError as error:
                    if error.errno != errno.ENOSPC or not self._give_up_reserve():
                        raise
        except OSError as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0)
            raise LimbeckError(f"journal {self.path.name}: {what}", "free some space, then run again") from None
        return size

    def tend(self, in_flight: int) -> bool:
        """To be called about once a second. Whether the disk holds what is in flight several times over: a paid answer
        must have a place to go."""
        status = os.fstatvfs(self._file)
        return (
            self._reserve is not None
            and status.f_bavail * status.f_frsize >= LOW_DISK + in_flight * BYTES_AN_ANSWER * 4
        )

    def _give_up_reserve(self) -> bool:
        """Make room on a full disk, once."""
        held, self._reserve = self._reserve, None
        if held is not None:
            os.close(held)
        return held is not None

    def sync(self) -> None:
        os.fdatasync(self._file)

    def close(self) -> None:
        self._give_up_reserve()
        try:
            self.sync()
        finally:
            os.close(self._file)
            os.close(self._lock)


def _reserve(root: Path) -> int:
    """Space on the disk that goes back when its descriptor is closed, by us or by the end of the process."""
    place, path = tempfile.mkstemp(prefix=".reserve-", dir=root)
    os.unlink(path)  # noqa: PTH108 - the name of what is open is a string
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(place, 0, RESERVE)
        else:
            os.write(place, bytes(RESERVE))
    except OSError as error:
        os.close(place)
        raise LimbeckError(
            f"journal {root}: {os.strerror(error.errno or 0)}", "free some space, then run again"
        ) from None
    return place


def wait_for_writers(root: Path, patience_s: float = GONE_WITHIN_S, tick_s: float = 0.1) -> None:
    """Return once no writer of an earlier start is alive; `SpecError` if one still is after `patience_s` seconds."""
    if not (root / LOCK).exists():
        return
    lock = os.open(root / LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SpecError(
                        f"{root.parent} is being written by another limbeck run",
                        "wait for it, or choose another --out",
                    ) from None
                time.sleep(tick_s)
    finally:
        os.close(lock)
