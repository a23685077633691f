"""The worker actor: pulls units from the feed and runs their calls with asyncio inside."""

import asyncio
import functools
import gc
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio

from schemas.errors import LimbeckError, SpecError
from schemas.lane import PROVIDERS, Teacher
from schemas.money import Amount
from services.admission.governor import governor_of
from services.admission.lease import LEASE_S, Grant, Report
from services.fanout.allowance import Allowance
from services.fanout.sender import Doubted, End, Moved, Sender, Stopped
from services.fanout.units import Errand, Unit
from services.journal.place import Journal
from services.ledger.books import Account, Advance
from services.teachers.adapter import charging_of, open_adapter
from services.teachers.credentials import credential_id
from services.teachers.embedded import SLOTS

REPORT_EVERY_S = 0.5
IDLE_S = 0.2  # before asking again where there is nothing to do for now
FREE_WINDOW = 64  # calls in flight of a lane that nobody else uses
log = logging.getLogger(__name__)


class Post(NamedTuple):
    """Where a worker stands: its name (and its segment's), its run, its lane, where an embedded teacher listens or the
    answers of a recorded one lie, the calls in flight of a lane that has no governor, whether the lane answered an
    earlier start, and the account that it is to use, where this process may have been started with another key."""

    name: str
    run: str
    lane: int
    teacher: Teacher
    base_url: str | None
    window: int | None
    journal: Journal
    has_answered: bool = False
    account: str = ""


class RayLeases:
    """The governor and the cashier over Ray. One that does not answer in time is treated as having said nothing.

    A governor leaves once nobody has asked for a minute, as between two stages of a run; then it is found anew.
    """

    def __init__(self, name: str, find_governor: Callable[[], Any] | None, cashier: Any | None) -> None:
        self._name, self._find, self._cashier = name, find_governor, cashier
        self._governor = find_governor() if find_governor is not None else None

    async def grant(self, report: Report) -> Grant | None:
        assert self._governor is not None and self._find is not None
        grant: Grant | None = await self._asked(self._governor.renew.remote(report))
        if grant is None:
            self._governor = self._find()
        return grant

    def leave(self) -> None:
        """Give up the share of the limits."""
        if self._governor is not None:
            self._governor.forget.remote(self._name)

    async def advance(self, account: Account, wanted: Amount, next_call: Amount) -> Advance | None:
        assert self._cashier is not None
        found: Advance | None = await self._asked(self._cashier.renew.remote(self._name, account, wanted, next_call))
        return found

    @staticmethod
    async def _asked(ref: Any) -> Any:
        import ray

        with anyio.move_on_after(LEASE_S):
            try:
                return await ref
            except ray.exceptions.RayError:
                pass  # it is being started again, or gone; the lease then runs out
        return None


def is_governed(teacher: Teacher) -> bool:
    """Whether a lane's limits are an account's, which others may use, too, or are named."""
    return teacher.provider in PROVIDERS or bool(teacher.limits.rates)


def places(teacher: Teacher) -> int | None:
    """Calls that may be in flight, where that is known from the start."""
    own = {"embedded": SLOTS, "scripted": FREE_WINDOW, "recorded": FREE_WINDOW}
    return teacher.limits.concurrency or own.get(teacher.provider)


def lane_governor(teacher: Teacher, base_url: str | None) -> Any:
    """The governor of a lane's account, started if there is none."""
    return governor_of(credential_id(teacher, base_url), charging_of(teacher))


class Worker:
    """One process, one lane, one connection pool, one journal segment."""

    def __init__(self, post: Post, cashier: Any | None) -> None:
        self._post = post
        self._refusal: LimbeckError | None = None
        self._has_answered = post.has_answered
        try:
            self._open_up(post.teacher, cashier)
        except LimbeckError as error:  # told by `run`: of an actor that fails to start Ray keeps no more than a text
            self._refusal = error

    def _open_up(self, teacher: Teacher, cashier: Any | None) -> None:
        post = self._post
        if post.account and credential_id(teacher, None) != post.account:
            raise SpecError(
                f"the key of {teacher.name} is another one where Ray's workers run than in this process",
                "ray.shutdown() before the run: workers have the environment that Ray was started with",
            )
        self._adapter = open_adapter(teacher, post.base_url)
        self._journal = post.journal.writer(post.name)
        governed = is_governed(teacher)
        find = functools.partial(lane_governor, teacher, post.base_url) if governed else None
        self._allowance = Allowance(
            post.run, post.name, teacher.limits.rates, places(teacher), governed, cashier is not None,
            window=0 if governed else post.window or FREE_WINDOW,
        )  # fmt: skip
        self._leases = RayLeases(post.name, find, cashier) if governed or cashier is not None else None
        self._open: dict[int, int] = {}

    async def ready(self) -> str:
        return self._post.name

    async def run(self, feed: Any) -> End:
        """Work until the feed has no more units, is stopped, the money is used up, or the lane closes."""
        if self._refusal is not None:
            raise self._refusal
        gc.freeze()  # what is loaded stays: looking through it held every call up for 0.1 s, every few seconds
        sender = Sender(
            self._post.teacher, self._adapter, self._journal, self._allowance, self._leases, self._post.lane,
            self._has_answered,
        )  # fmt: skip
        finished = asyncio.Event()
        helpers = [
            asyncio.create_task(self._report(feed, sender, finished)),
            asyncio.create_task(sender.renew_leases()),
        ]
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._pull(feed, sender, tasks)
            if tasks:
                await asyncio.gather(*tasks)
            shall_stop, _ = await feed.report.remote(self._post.name, sender.take_delta(), [])
            if not shall_stop:
                sender.settle_last()
        finally:
            finished.set()
            sender.done()
            await asyncio.gather(*helpers)
        try:
            await asyncio.to_thread(self._journal.sync)
        except LimbeckError as error:
            sender.stop(End("failed", error.message))
        self._has_answered = sender.has_answered
        await sender.renew()
        await feed.report.remote(self._post.name, sender.take_delta(), [])
        return sender.end or End("done")

    async def _pull(self, feed: Any, sender: Sender, tasks: set["asyncio.Task[None]"]) -> None:
        def ended(task: "asyncio.Task[None]") -> None:
            tasks.discard(task)
            if not tasks:
                sender.freed.set()

        while sender.end is None:
            if not sender.is_hungry and tasks:
                # Not asyncio.wait: with 200 tasks it cost 0.1 ms for each that ends.
                sender.freed.clear()
                await sender.freed.wait()
                continue
            unit, finished = await feed.next_unit.remote(self._post.name, self._post.lane, sender.room)
            if unit is None:
                if finished:
                    return
                await asyncio.sleep(IDLE_S)  # other lanes have to take what does not fit this one
            for errand in unit.errands if unit else ():
                task = asyncio.create_task(self._see_through(sender, errand, unit, feed))
                tasks.add(task)
                task.add_done_callback(ended)
            if unit:
                self._open[unit.number] = len(unit.errands)

    async def _see_through(self, sender: Sender, errand: Errand, unit: Unit, feed: Any) -> None:
        name, call = self._post.name, errand.call
        try:
            await sender.run(errand)
        except Doubted as doubted:
            await feed.doubt.remote(name, call, doubted.trace)
        except Moved as moved:
            await feed.give_back.remote(name, unit.number, call, moved.trace)
        except Stopped as stopped:
            await feed.note.remote(name, call, stopped.trace)
            return
        except Exception as error:
            log.exception("a call met an unforeseen error")
            sender.stop(End("failed", str(error) or type(error).__name__))
            return
        self._open[unit.number] -= 1
        if not self._open[unit.number]:
            del self._open[unit.number]
            await feed.report.remote(self._post.name, sender.take_delta(), [unit.number])

    async def _report(self, feed: Any, sender: Sender, finished: asyncio.Event) -> None:
        while not finished.is_set():
            with anyio.move_on_after(REPORT_EVERY_S):
                await finished.wait()
            shall_stop, idle = await feed.report.remote(self._post.name, sender.take_delta(), [])
            if shall_stop:
                sender.stop(End("stopped"))
            elif idle:
                sender.hand_over(idle, REPORT_EVERY_S)

    async def close(self) -> None:
        """Seal the segment and let go of the connections and of the share of the limits."""
        if self._refusal is not None:
            return
        if self._leases is not None:
            self._leases.leave()
        await self._adapter.close()
        await asyncio.to_thread(self._journal.close)
