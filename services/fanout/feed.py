"""The feed actor: hands units of the current plan to workers and adds up what they report."""

import functools
from collections.abc import Sequence

from schemas.call import Call
from schemas.lane import Teacher
from schemas.money import Amount
from services.fanout.size import fits
from services.fanout.units import Plan, Progress, Trace, Unit, Units
from services.journal.index import MARK, JournalIndex, WriterReader, segments_by_writer
from services.journal.place import Journal


class Feed:
    """One for a run. It holds the journal's index of earlier starts, so workers and driver stay small."""

    def __init__(self, teachers: Sequence[Teacher], journal: Journal, retry_failed: bool = False) -> None:
        self._teachers = tuple(teachers)
        self._models = tuple(teacher.name for teacher in teachers)
        self._journal, self._retry_failed = journal, retry_failed
        self._index = JournalIndex(journal.read())
        self._units: Units | None = None
        self._progress = Progress()
        self._stop = False

    async def load(self, plan: Plan) -> None:
        """Start on a plan. Answers that earlier plans of this start brought count as paid."""
        if self._units is not None:
            self._index.close()
            self._index = JournalIndex(self._journal.read())
        fits = functools.partial(_fits, self._teachers)
        settled = (lambda key: False) if self._retry_failed else self._index.is_settled
        self._units = Units(plan, self._models, self._index.__contains__, fits, settled, self._index.has_failed)
        self._progress = Progress()

    async def next_unit(self, worker: str, lane: int, wanted: int) -> tuple[Unit | None, bool]:
        """(a unit or None, whether no more will come)."""
        assert self._units is not None
        if self._stop:
            return None, True
        unit = self._units.next(worker, lane, wanted)
        return unit, unit is None and self._units.is_over

    async def absent(self, gone: frozenset[int], over: frozenset[int]) -> None:
        """The lanes that do not work now, and those that take no more calls of this plan."""
        assert self._units is not None
        self._units.absent(gone, over)

    async def give_back(self, worker: str, number: int, call: Call, trace: Trace) -> None:
        """A call of a unit that its worker does not see through, for somebody else."""
        assert self._units is not None
        self._units.give_back(worker, number, call, trace)

    async def report(self, worker: str, delta: Progress, done: Sequence[int]) -> tuple[bool, dict[int, int]]:
        """Add a worker's counters and close its units; whether it shall stop, and how many calls the other workers of
        each lane could start but for want of any."""
        assert self._units is not None
        self._progress.add(delta)
        for number in done:
            self._units.done(worker, number)
        return self._stop, self._units.idle(worker)

    async def doubt(self, worker: str, call: Call, trace: Trace) -> None:
        """A call failed, and the worker's lane may be to blame: another one gets it where that lane closes."""
        assert self._units is not None
        self._units.doubt(worker, call, trace)

    async def note(self, worker: str, call: Call, trace: Trace) -> None:
        """What became of a call that its worker has not seen through, for that worker stops."""
        assert self._units is not None
        self._units.note(worker, call, trace)

    async def progress(self) -> Progress:
        """The sum of all reports for the current plan."""
        total = Progress()
        total.add(self._progress)
        if self._units is not None:
            total.reused = self._units.reused
            total.failed += self._units.failed
        return total

    async def stop(self) -> None:
        """Hand out nothing more; workers finish the calls in flight."""
        self._stop = True

    async def bury(self, worker: str) -> tuple[int, Amount]:
        """Take back a dead worker's calls: (calls returned, what its segments say it spent)."""
        assert self._units is not None
        found = WriterReader(segments_by_writer(self._journal.read()).get(worker, []))
        settled = found.answers.keyset() | found.failures.keyset()
        return self._units.bury(worker, lambda key: key[:MARK] in settled), found.totals.amount

    async def finished(self) -> bool:
        assert self._units is not None
        return self._units.finished


def _fits(teachers: Sequence[Teacher], lane: int, call: Call) -> bool:
    return fits(call, teachers[lane])
