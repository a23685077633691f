"""Where a run's journal is: append logs in its own folder, or sealed segments on an object store.

Nothing can be appended to an object. There a worker appends to a log on its own machine's disk and ships it as a sealed
segment every few seconds; `read` brings what is not here yet. A worker that is killed loses nothing: whoever finds its
log ships it. A machine that is lost for good takes at most the last `SEAL_S` seconds of its answers with it.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SpecError
from services.journal.sealing import SealingWriter
from services.journal.store import Store
from services.journal.writer import GONE_WITHIN_S, JournalWriter, wait_for_writers


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of one run. Pickles: every actor of a run has it."""

    root: Path  # append logs; with a store, what was brought from it
    store: str | None = None

    def writer(self, name: str) -> JournalWriter:
        """A writer of its own for the worker `name`."""
        if self.store is None:
            return JournalWriter(self.root, name)
        return SealingWriter(self.logs, name, Store(self.store))

    def read(self) -> Path:
        """A folder of this machine that holds every segment that is sealed by now."""
        if self.store is None:
            return self.root
        place = self.root if self.root.exists() else self.logs / "brought"
        Store(self.store).bring(place)
        return place

    @property
    def logs(self) -> Path:
        """The folder of this machine's logs, the same in every process and after every restart."""
        if self.store is None:
            return self.root
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        return home / "limbeck" / "journal" / hashlib.sha256(self.store.encode()).hexdigest()[:16]

    def check(self) -> None:
        """`SpecError` where the store cannot be written to or read."""
        if self.store is not None:
            Store(self.store).check()

    def wait_for_writers(self) -> None:
        """Return once no writer of an earlier start is alive on this machine, and what they left is sealed;
        `SpecError` if one still is."""
        if self.store is None:
            wait_for_writers(self.root)
        elif self.ship(GONE_WITHIN_S):
            raise SpecError(f"journal {self.store} is being written by another limbeck run", "wait for it to end")

    def ship(self, patience_s: float = 0.0, tick_s: float = 0.1, writer: str = "") -> int:
        """Seal what dead writers left on this machine; how many logs of live ones are left after `patience_s`.
        `writer`: of this one alone."""
        if self.store is None:
            return 0
        store, deadline = Store(self.store), time.monotonic() + patience_s
        while (alive := sum(not store.adopt(path) for path in sorted(self.logs.glob(f"{writer}*.seg")))) > 0:
            if time.monotonic() >= deadline:
                break
            time.sleep(tick_s)
        return alive
