"""One worker's calls: admitted, sent, journalled, settled. Plain asyncio; the actor round it is in `worker`."""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from schemas.call import Call, Reply, Verdict, VerdictKind, call_key
from schemas.errors import LimbeckError
from schemas.lane import Teacher
from schemas.money import Usage
from services.admission.governor import BUDGET_POLL_S, Demand, Lease, Settled
from services.admission.window import Window
from services.fanout.retry import attempts
from services.fanout.units import Progress
from services.journal.frame import Frame, Kind
from services.journal.writer import JournalWriter
from services.teachers.adapter import Adapter, dialect_of

TURN_BYTES = 64  # what a chat template adds to a message, as an upper bound in tokens
BREAKER = 8  # calls in a row that ran out of attempts: the lane is down, not the calls
LeaseFn = Callable[[Sequence[Demand], Settled], Awaitable[Lease]]


class Stopped(Exception):
    """This call was not sent: the worker stops."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a worker stopped sending: done, stopped, exhausted or closed."""

    reason: str
    detail: str = ""


def worst_case(call: Call, teacher: Teacher) -> Demand:
    """The most that a call can take. No tokenizer makes more tokens than a text has bytes."""
    size = sum(len(m.content.encode()) + TURN_BYTES for m in call.messages)
    cost = teacher.rates.cost(Usage(size, call.sampling.max_tokens))
    # Rates are kept on an estimate (about four bytes a token), money on the bound.
    return Demand(size // 4 + 1, call.sampling.max_tokens, cost)


class Sender:
    """Runs calls against one lane, `window` at a time.

    `lease` is None for a lane without rates and without money; then nothing is asked for before a call.
    """

    def __init__(
        self,
        teacher: Teacher,
        adapter: Adapter,
        journal: JournalWriter,
        window: Window,
        lease: LeaseFn | None,
    ) -> None:
        self._teacher, self._adapter, self._journal = teacher, adapter, journal
        self._window, self._lease = window, lease
        self._dialect = dialect_of(teacher)
        self._waiting: deque[tuple[Demand, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._in_flight = 0
        self._settled = Settled()
        self._pause_until = 0.0
        self._failed_in_a_row = 0
        self.delta = Progress()
        self.end: End | None = None

    @property
    def room(self) -> int:
        """How many more calls to take on, so that the window stays full while some wait for a retry."""
        return 0 if self.end else self._window.size + 16 - len(self._waiting) - self._in_flight

    def take_delta(self) -> Progress:
        """Counters since the last call."""
        delta, self.delta = self.delta, Progress()
        return delta

    def stop(self, end: End) -> None:
        """Send nothing more; calls in flight are finished and kept."""
        if self.end is None:
            self.end = end
            while self._waiting:
                _, ready = self._waiting.popleft()
                if not ready.done():
                    ready.set_exception(Stopped())
            self._wake.set()

    async def run(self, call: Call) -> None:
        """See one call through to an answer or a final failure in the journal; `Stopped` where the worker stops."""
        key = call_key(self._teacher.name, call.content())
        demand = worst_case(call, self._teacher)
        tries = 0

        async def once() -> Reply:
            nonlocal tries
            await self._admit(demand)
            tries += 1
            self.delta.retried += tries > 1
            return await self._send(call, key, demand)

        reply: Reply = await attempts()(once)
        if reply.verdict.kind is VerdictKind.ANSWERED:
            self._failed_in_a_row = 0
            return
        self._give_up(key, reply)

    def _give_up(self, key: bytes, reply: Reply) -> None:
        verdict = reply.verdict
        self._failed_in_a_row += verdict.kind.retried
        down = verdict.kind is VerdictKind.UNREACHABLE or self._failed_in_a_row >= BREAKER
        if verdict.kind.closes_lane or down:
            self.stop(End("closed", f"{verdict.kind.value}: {verdict.detail}"))
            raise Stopped
        meta = {"final": True, "kind": verdict.kind.value, "detail": verdict.detail, "status": reply.status}
        self._journal.append(Frame(Kind.FAILED, key, os.urandom(16), meta, reply.body))
        self.delta.failed += 1

    async def _admit(self, demand: Demand) -> None:
        if self.end:
            raise Stopped
        ready = asyncio.get_running_loop().create_future()
        self._waiting.append((demand, ready))
        self._wake.set()
        await ready

    async def _send(self, call: Call, key: bytes, demand: Demand) -> Reply:
        attempt = os.urandom(16)
        try:
            if demand.cost:
                self._journal.append(Frame(Kind.SENT, key, attempt, {"reserved": demand.cost}))
            self.delta.sent += 1
            reply = await self._adapter.send(call)
            cost = self._record(key, attempt, demand, reply)
        except LimbeckError as error:
            # An answer that cannot be kept must not be followed by another one that is paid for.
            self.stop(End("failed", error.message))
            raise
        finally:
            self._in_flight -= 1
            self._wake.set()
        self._settle(demand, reply, cost)
        self._learn(reply.verdict)
        return reply

    def _record(self, key: bytes, attempt: bytes, demand: Demand, reply: Reply) -> int:
        """Put one attempt on disk; its cost in micro-dollars."""
        kind = reply.verdict.kind
        if kind is VerdictKind.ANSWERED:
            usage = reply.usage
            cost = demand.cost if usage is None else self._teacher.rates.cost(usage)
            counted = usage or Usage()
            meta = {
                "teacher": self._teacher.name, "dialect": self._dialect, "cost": cost,
                "in": counted.input_tokens, "out": counted.output_tokens,
            }  # fmt: skip
            self._journal.append(Frame(Kind.ANSWERED, key, attempt, meta, reply.body))
            self.delta.answered += 1
            self.delta.input_tokens += counted.input_tokens
            self.delta.output_tokens += counted.output_tokens
            self.delta.cost += cost
            return cost
        # Neither provider documents what a call in doubt costs, so it is taken to cost all that was reserved.
        cost = demand.cost if kind is VerdictKind.IN_DOUBT else 0
        if demand.cost:
            meta = {"final": False, "kind": kind.value, "detail": reply.verdict.detail, "cost": cost}
            self._journal.append(Frame(Kind.FAILED, key, attempt, meta))
        self.delta.cost += cost
        return cost

    def _settle(self, demand: Demand, reply: Reply, cost: int) -> None:
        used = reply.usage.output_tokens if reply.usage else 0
        unused = max(0, demand.output_tokens - used) if reply.verdict.kind is VerdictKind.ANSWERED else 0
        before = self._settled
        self._settled = Settled(before.reserved + demand.cost, before.cost + cost, before.unused_output + unused)

    def _learn(self, verdict: Verdict) -> None:
        now = asyncio.get_running_loop().time()
        if verdict.kind is VerdictKind.ANSWERED:
            self._window.answered(self._in_flight + 1)
        elif verdict.kind is VerdictKind.RATE_LIMITED:
            self._window.refused(now)
            self._pause_until = max(self._pause_until, now + (verdict.retry_after or 0.0))

    async def pump(self) -> None:
        """Admit waiting calls until cancelled: fill the window, under a lease where the lane needs one."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            free = min(self._window.size - self._in_flight, len(self._waiting))
            pause = self._pause_until - loop.time()
            if free > 0 and pause <= 0:
                pause = await self._grant(free)
            if self._settled.reserved and not self._waiting:
                await self.flush()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause if pause > 0 else None)

    async def _grant(self, free: int) -> float:
        """Admit up to `free` waiting calls; the seconds to wait before asking again, 0 for not before an event."""
        if self._lease is None:
            lease = Lease(free)
        else:
            settled, self._settled = self._settled, Settled()
            lease = await self._lease([demand for demand, _ in list(self._waiting)[:free]], settled)
        for _ in range(min(lease.calls, len(self._waiting))):
            _, ready = self._waiting.popleft()
            if not ready.done():
                self._in_flight += 1
                ready.set_result(None)
        if lease.exhausted and self._in_flight == 0:
            self.stop(End("exhausted"))
        return lease.wait_s or (BUDGET_POLL_S if lease.exhausted else 0.0)

    async def flush(self) -> None:
        """Settle what came back since the last lease, so that other workers may use the money."""
        if self._lease is not None:
            settled, self._settled = self._settled, Settled()
            await self._lease([], settled)
