"""The feed actor: hands units of the current plan to workers and adds up what they report."""

from collections.abc import Sequence
from pathlib import Path

from services.fanout.units import Plan, Progress, Unit, Units
from services.journal.index import MARK, JournalIndex, SegmentReader


class Feed:
    """One for a run. It holds the journal's index of earlier starts, so workers and driver stay small."""

    def __init__(self, models: Sequence[str], journal: Path) -> None:
        self._models = tuple(models)
        self._journal = journal
        self._index = JournalIndex(journal)
        self._units: Units | None = None
        self._progress = Progress()
        self._stop = False

    async def load(self, plan: Plan) -> None:
        """Start on a plan. Answers that earlier plans of this start brought count as paid."""
        if self._units is not None:
            self._index.close()
            self._index = JournalIndex(self._journal)
        self._units = Units(plan, self._models, self._index.__contains__)
        self._progress = Progress()

    async def next_unit(self, worker: str) -> tuple[Unit | None, bool]:
        """(a unit or None, whether no more will come)."""
        assert self._units is not None
        if self._stop:
            return None, True
        unit = self._units.next(worker)
        return unit, unit is None and self._units.exhausted

    async def report(self, worker: str, delta: Progress, done: Sequence[int]) -> bool:
        """Add a worker's counters and close its units; whether it shall stop."""
        assert self._units is not None
        self._progress.add(delta)
        for number in done:
            self._units.done(worker, number)
        return self._stop

    async def progress(self) -> Progress:
        """The sum of all reports for the current plan."""
        total = Progress()
        total.add(self._progress)
        if self._units is not None:
            total.reused = self._units.reused
        return total

    async def stop(self) -> None:
        """Hand out nothing more; workers finish the calls in flight."""
        self._stop = True

    async def bury(self, worker: str) -> tuple[int, int]:
        """Take back a dead worker's calls: (calls returned, micro-dollars that its segment holds)."""
        assert self._units is not None
        path = self._journal / f"{worker}.seg"
        if not path.exists():
            return self._units.bury(worker, lambda _: False), 0
        segment = SegmentReader(path)
        settled = segment.answers.keyset() | segment.failures.keyset()
        return self._units.bury(worker, lambda key: key[:MARK] in settled), segment.totals.cost

    async def finished(self) -> bool:
        assert self._units is not None
        return self._units.finished
