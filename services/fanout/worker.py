"""The worker actor: pulls units from the feed and runs their calls with asyncio inside."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.lane import Teacher
from services.admission.governor import Demand, Lease, Settled
from services.admission.window import Window
from services.fanout.sender import End, Sender, Stopped
from services.fanout.units import Unit
from services.journal.writer import JournalWriter
from services.teachers.adapter import open_adapter

REPORT_EVERY_S = 0.5
log = logging.getLogger(__name__)


class Worker:
    """One process, one lane, one connection pool, one journal segment."""

    def __init__(
        self, name: str, lane: int, teacher: Teacher, base_url: str | None,
        concurrency: int | None, journal: Path, governor: Any | None,
    ) -> None:  # fmt: skip
        self._name, self._lane, self._governor = name, lane, governor
        self._teacher = teacher
        self._adapter = open_adapter(teacher, base_url)
        self._journal = JournalWriter(journal, name)
        self._window = Window(concurrency)
        self._open: dict[int, int] = {}

    async def ready(self) -> str:
        return self._name

    async def _lease(self, demands: Sequence[Demand], settled: Settled) -> Lease:
        assert self._governor is not None
        lease: Lease = await self._governor.lease.remote(self._name, self._lane, demands, settled)
        return lease

    async def run(self, feed: Any) -> End:
        """Work until the feed has no more units, is stopped, the money is used up, or the lane closes."""
        lease = self._lease if self._governor is not None else None
        sender = Sender(self._teacher, self._adapter, self._journal, self._window, lease)
        pump = asyncio.create_task(sender.pump())
        reporter = asyncio.create_task(self._report(feed, sender))
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._pull(feed, sender, tasks)
            if tasks:
                await asyncio.gather(*tasks)
            self._journal.sync()
            if lease is not None:
                await sender.flush()
        finally:
            reporter.cancel()
            pump.cancel()
        await feed.report.remote(self._name, sender.take_delta(), [])
        return sender.end or End("done")

    async def _pull(self, feed: Any, sender: Sender, tasks: set["asyncio.Task[None]"]) -> None:
        while sender.end is None:
            if sender.room <= 0:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                continue
            unit, finished = await feed.next_unit.remote(self._name)
            if unit is None and finished:
                return
            for call in unit.calls if unit else ():
                task = asyncio.create_task(self._see_through(sender, call, unit, feed))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if unit:
                self._open[unit.number] = len(unit.calls)

    async def _see_through(self, sender: Sender, call: Any, unit: Unit, feed: Any) -> None:
        try:
            await sender.run(call)
        except Stopped:
            return
        except Exception as error:
            log.exception("a call met an unforeseen error")
            sender.stop(End("failed", str(error) or type(error).__name__))
            return
        self._open[unit.number] -= 1
        if not self._open[unit.number]:
            del self._open[unit.number]
            await feed.report.remote(self._name, sender.take_delta(), [unit.number])

    async def _report(self, feed: Any, sender: Sender) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            if await feed.report.remote(self._name, sender.take_delta(), []):
                sender.stop(End("stopped"))

    async def close(self) -> None:
        """Seal the segment and let go of the connections."""
        await self._adapter.close()
        self._journal.close()
