"""Who writes to a journal on an object store: one run at a time, on whichever machine.

Not every store that pyarrow knows has a lock or a conditional write. So each run keeps an object of its own beside the
segments and changes it every few seconds. Whoever finds another's watches it for as long as the workers of a dead run
may still write: one that changes has a living run behind it, one that does not is removed. No clocks are compared.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import Interrupted, LimbeckError, SpecError
from services.journal.place import Journal
from services.journal.store import Store, first_line
from services.journal.writer import GONE_WITHIN_S

BEAT_S = 5.0
ENDING = ".run"
NAME_FILE = "lease-name"


class Lease:
    """One run's hold on a store. name: of its object there; is_lost: another run has taken the store, as after this
    machine was asleep for long."""

    def __init__(self, store: Store, name: str, run: str, beat_s: float = BEAT_S) -> None:
        self.is_lost = False
        self._store, self.name, self._run, self._beat_s = store, f"{name}{ENDING}", run, beat_s
        self._host, self._beats, self._held = socket.gethostname(), 0, False
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="journal-lease", daemon=True)

    def take(
        self, watch_s: float = GONE_WITHIN_S, look_s: float = 1.0, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Return once this run is alone. `SpecError` where another one writes there, `Interrupted` where `stopping`
        says so meanwhile."""
        self._write()
        self._thread.start()
        try:
            for name in sorted(self._store.names(ENDING) - {self.name}):
                self._outlast(name, watch_s, look_s, stopping)
        except BaseException:
            self.give_back()
            raise
        self._held = True
        self._write()

    def _outlast(self, name: str, watch_s: float, look_s: float, stopping: Callable[[], bool]) -> None:
        """Return once the other's object is gone, or has not changed for `watch_s` seconds."""
        first = seen = self._look(name)
        changed_at = time.monotonic()
        while seen is not None:
            # Of two that arrive at once the one with the smaller name goes on, once it has seen the other go.
            if seen != first and (seen["held"] or name < self.name):
                raise SpecError(
                    f"journal {self._store.url} is being written by the run {seen['run']} on {seen['host']}",
                    "wait for it to end, or give this run a folder of its own there",
                )
            if time.monotonic() - changed_at > watch_s:
                self._store.remove(name)
                return
            if stopping():
                raise Interrupted("interrupted", "run the same command again to go on")
            time.sleep(look_s)
            now = self._look(name)
            if now != seen:
                seen, changed_at = now, time.monotonic()

    def _look(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.read(name))
        except FileNotFoundError:
            return None
        except ValueError:  # half of one, on a store whose objects do not appear whole
            return {"held": False, "run": "?", "host": "?"}
        return {"held": False, "run": "?", "host": "?", **found}

    def _write(self) -> None:
        with self._writing:
            self._beats += 1
            told = {"run": self._run, "host": self._host, "held": self._held, "beat": self._beats}
            self._store.write(self.name, json.dumps(told).encode())

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                if self._look(self.name) is None:
                    self.is_lost = True
                    return
                self._write()
            except OSError:  # the store does not answer now; the workers' segments wait as well
                continue

    def give_back(self) -> None:
        """Let the next run have the store at once."""
        self._over.set()
        self._thread.join()
        if not self.is_lost:
            with contextlib.suppress(OSError):
                self._store.remove(self.name)


@contextmanager
def sole(journal: Journal, run: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[Lease | None]:
    """Hold a journal's store, where it has one. `SpecError` where another run does, `LimbeckError` where it fails,
    `Interrupted` as `stopping` says."""
    if journal.store is None:
        yield None
        return
    lease = Lease(Store(journal.store), _name_of(journal.root), run)
    try:
        lease.take(stopping=stopping)
    except OSError as error:
        what = f"journal {journal.store}: {first_line(error)}"
        raise LimbeckError(what, "run again when the store answers") from None
    try:
        yield lease
    finally:
        lease.give_back()


def _name_of(root: Path) -> str:
    """The same in every start of one run directory on one machine, which a lock keeps apart already: what a killed
    start left there is its own."""
    place = root / NAME_FILE
    if not place.exists():
        place.write_text(secrets.token_hex(8))
    content = f"{place.read_text()} {socket.gethostname()} {os.getuid()}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
