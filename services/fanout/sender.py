"""One worker's calls: admitted, sent, journalled, settled. Plain asyncio; the actor round it is in `worker`."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import anyio

from schemas.call import Call, Reply, Verdict, VerdictKind, call_key
from schemas.errors import LimbeckError
from schemas.lane import Teacher
from schemas.money import Amount, Usage
from services.admission.lease import PERIOD_S, Grant, Report
from services.fanout.allowance import Allowance
from services.fanout.breaker import NEVER_ITS_OWN, Breaker
from services.fanout.retry import attempts
from services.fanout.size import Demand, grown, seen, wild, worst_case
from services.fanout.units import Errand, Progress, Trace
from services.journal.frame import Frame, Kind
from services.journal.writer import JournalWriter
from services.ledger.books import Account, Advance, Excess
from services.teachers.adapter import Adapter, dialect_of

SHORT_S = 1.0  # of a pause, in which no more calls are taken on
LONG_S = 5.0  # of one that is worth telling, and in which calls that were refused go elsewhere
SOONEST_S = 0.05  # between two renewals
DISK_EVERY_S = 1.0
LEASELESS_S = 60.0
SPARE = 16  # calls that wait while the window is full, so that it stays full
# Failures that another model may not repeat.
OF_THE_CALL = (VerdictKind.TOO_LARGE, VerdictKind.BAD_REQUEST, VerdictKind.NOT_RECORDED)
LOST = Verdict(VerdictKind.IN_DOUBT, "the worker met an error")


class Halted(Exception):
    """A call ends here without an answer; what the next to have it should know."""

    trace = Trace()


class Stopped(Halted):
    """The worker stops."""


class Moved(Halted):
    """Another worker shall have the call."""


class Doubted(Halted):
    """The call failed, and the lane may be to blame."""


class Waiting(NamedTuple):
    """A call that waits to leave. others: the lanes that could take it instead; refused: it has left before."""

    demand: Demand
    ready: asyncio.Future[Demand]
    others: tuple[int, ...]
    refused: bool


@dataclass(frozen=True, slots=True)
class End:
    """Why a worker stopped sending: done, stopped, exhausted (detail: the caps), closed or failed."""

    reason: str
    detail: str = ""


@dataclass(slots=True)
class Case:
    """A call on its way. sent: it has left, from here or elsewhere; last: what came of the last attempt here."""

    errand: Errand
    key: bytes
    sent: bool
    last: VerdictKind | None = None


class Leases(Protocol):
    """The governor and the cashier as a worker asks them; None where one does not answer."""

    async def grant(self, report: Report) -> Grant | None: ...

    async def advance(self, account: Account, wanted: Amount, next_call: Amount) -> Advance | None: ...


class Sender:
    """Runs calls against one lane as its allowance permits."""

    def __init__(
        self, teacher: Teacher, adapter: Adapter, journal: JournalWriter, allowance: Allowance, leases: Leases | None,
        lane: int = 0, has_answered: bool = False,
    ) -> None:  # fmt: skip
        self._adapter, self._journal = adapter, journal
        self._allowance, self._leases, self._lane = allowance, leases, lane
        self._name, self._rates, self._dialect = teacher.name, teacher.rates, dialect_of(teacher)
        self._noted = allowance.banked or not self._rates.free  # attempts are journalled before they leave
        self._waiting: deque[Waiting] = deque()
        self._need = asyncio.Event()
        self.freed = asyncio.Event()  # set when there is room for more calls, or no more are wanted
        self._leased_at: float | None = None
        self._typical: Demand | None = None
        self._breaker = Breaker(has_answered)
        self._failed: dict[int, tuple[bytes, dict[str, Any]]] = {}  # calls that may yet prove to be to blame
        self._done = False
        self._answers = 0
        self._wild = wild(teacher)
        self._seen = Excess()  # what calls took beyond what could be foreseen, the most of each
        self._excess = Excess()  # what is reserved for it
        self._resting: dict[asyncio.Future[None], tuple[int, ...]] = {}  # calls between two attempts, and `others`
        self._disk_at = 0.0
        self.delta = Progress()
        self.end: End | None = None

    @property
    def has_answered(self) -> bool:
        """Whether the lane has answered, now or before."""
        return self._breaker.has_answered

    @property
    def room(self) -> int:
        """How many more calls to take on: a second's worth waits at the most, for another lane may be freer. Calls
        that wait for a retry count: a teacher that refuses everything must not be fed the whole source."""
        if self.end or self._pause_s > SHORT_S:
            return 0
        waiting, resting = len(self._waiting), len(self._resting)
        if self._leases is None:
            return self._allowance.window + SPARE - self._allowance.in_flight - waiting - resting
        return min(self._buffer, max(SPARE, self._buffer) - resting) - waiting

    @property
    def _pause_s(self) -> float:
        """What is left of a pause."""
        return self._allowance.pause_until - asyncio.get_running_loop().time()

    @property
    def _buffer(self) -> int:
        """Calls to hold: a second's worth, and no more than what leaves in two as it has been lately: answers that come
        together let many leave at once, and none for long. `SPARE` are too many for a slow lane alone."""
        pace, most = int(self._allowance.pace), 1 + int(2 * self._allowance.lately)
        return max(SPARE, min(pace, most)) if pace > SPARE else min(SPARE, most)

    @property
    def is_hungry(self) -> bool:
        """Whether it is time to take more calls on: half a buffer at a time, for asking costs as much as a call."""
        return self.room >= max(1, self._buffer // 2)

    def take_delta(self) -> Progress:
        """Counters since the last call, and until when the server asked for none."""
        delta, self.delta = self.delta, Progress()
        if (left := self._pause_s) > LONG_S:
            delta.pauses[self._name] = time.time() + left
        return delta

    def stop(self, end: End) -> None:
        """Send nothing more; calls in flight are finished and kept."""
        if self.end is None:
            self.end = end
            halted: list[asyncio.Future[Any]] = [entry.ready for entry in self._waiting]
            for ready in halted + list(self._resting):
                if not ready.done():
                    ready.set_exception(Stopped())
            self._waiting.clear()
            for event in (self._need, self.freed):
                event.set()

    def hand_over(self, idle: dict[int, int], soon_s: float) -> None:
        """Let go of calls that others have nothing better to do than; `idle`: how many, by lane. Of those that will not
        leave within `soon_s` the last go, to workers of this lane where a place is what they wait for. Those that rest
        after a refusal go in a long pause of the lane alone: else it is they that the server asked to wait."""
        soon, own = int(self._allowance.pace * soon_s), (self._lane,) if self._allowance.is_full else ()
        movable: list[tuple[asyncio.Future[Any], tuple[int, ...]]] = []
        if self._pause_s > LONG_S:
            movable += list(self._resting.items())
        for entry in reversed(list(self._waiting)[soon:]):
            movable.append((entry.ready, entry.others if entry.refused else (*entry.others, *own)))
        for ready, lanes in movable:
            lane = next((lane for lane in lanes if idle.get(lane)), None)
            if lane is not None and not ready.done():
                idle[lane] -= 1
                ready.set_exception(Moved())
        self._waiting = deque(entry for entry in self._waiting if not entry.ready.done())

    async def run(self, errand: Errand) -> None:
        """See one call through to an answer or a final failure in the journal. `Stopped` where the worker stops,
        `Moved` where another one shall have it, `Doubted` where the lane may be to blame for a failure."""
        case = Case(errand, call_key(self._name, errand.call.content()), errand.sent)
        try:
            await self._see_through(case)
        except Halted as halted:
            tried = isinstance(halted, Moved) and case.last is not None
            halted.trace = Trace(case.sent, tried, tried and case.last in OF_THE_CALL)
            raise

    async def _see_through(self, case: Case) -> None:
        others = case.errand.others
        demand = await self._admit(case.errand.call, others)
        number = self._breaker.sent()
        first: Reply | None = await self._attempt(case, demand)
        assert first is not None
        reply = first
        if first.verdict.kind.retried:
            movable = others

            async def again() -> Reply:
                nonlocal first, movable
                if first is None:
                    found = await self._attempt(case, await self._admit(case.errand.call, movable, True))
                else:
                    found, first = first, None
                # What failed for another reason would have all its attempts anew elsewhere, and there again.
                movable = others if found.verdict.kind in NEVER_ITS_OWN else ()
                return found

            reply = await attempts(lambda seconds: self._rest(seconds, movable))(again)
        if reply.verdict.kind is not VerdictKind.ANSWERED:
            self._give_up(case, number, reply)
            return
        self._settle(self._breaker.answered(number))

    def _settle(self, numbers: Sequence[int]) -> None:
        """These calls were themselves to blame, and later starts leave them."""
        for number in numbers:
            if number in self._failed:
                key, meta = self._failed.pop(number)
                self._journal.append(Frame(Kind.FAILED, key, os.urandom(16), {**meta, "settled": True}))

    def settle_last(self) -> None:
        """All calls are through, and none follows that could tell whether the last that failed are to blame. Of those
        that nothing came of but a bill it is taken to be so: asked again, each would be paid for again."""
        if self.end is None:
            paid = {number for number, (_, meta) in self._failed.items() if meta["paid"]}
            self._settle([number for number in self._breaker.ended() if number in paid])

    async def _rest(self, seconds: float, others: tuple[int, ...]) -> None:
        """Between two attempts; cut short where the worker stops, or the call goes elsewhere."""
        if self.end:
            raise Stopped
        rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting[rest] = others
        try:
            with anyio.move_on_after(seconds):
                await rest
        finally:
            del self._resting[rest]

    def _give_up(self, case: Case, number: int, reply: Reply) -> None:
        verdict = reply.verdict
        fault = self._breaker.failed(number, verdict.kind, case.errand.known, reply.is_charged)
        if fault.opens:
            self._close(verdict)
            raise Stopped
        if verdict.kind in OF_THE_CALL and case.errand.others:
            raise Moved  # another model may hold more, or take what this one does not
        meta = {
            "final": True, "kind": verdict.kind.value, "detail": verdict.detail, "status": reply.status,
            "settled": fault.settled,
        }  # fmt: skip
        self._journal.append(Frame(Kind.FAILED, case.key, os.urandom(16), meta, reply.body))
        self.delta.failed += 1
        if not fault.settled:
            paid = reply.is_charged or verdict.kind is VerdictKind.MALFORMED
            self._failed[number] = case.key, {**meta, "repeats": True, "paid": paid}
            raise Doubted

    def _close(self, verdict: Verdict) -> None:
        """No call of this lane can succeed."""
        self.stop(End("closed", f"{verdict.kind.value}: {verdict.detail}"))

    async def _attempt(self, case: Case, demand: Demand) -> Reply:
        loop, key, again = asyncio.get_running_loop(), case.key, case.sent
        attempt, sent_at = os.urandom(16), loop.time()
        reply, cost = Reply(verdict=LOST), Amount()
        try:
            if self._noted:
                meta = {"nano_usd": demand.money.nano_usd, "tokens": demand.money.tokens}
                self._journal.append(Frame(Kind.SENT, key, attempt, meta))
            self.delta.sent += 1
            self.delta.retried += again
            case.sent = True
            reply = await self._adapter.send(case.errand.call)
            case.last = reply.verdict.kind
            if case.last is VerdictKind.UNREACHABLE:  # it never left
                self.delta.sent -= 1
                self.delta.retried -= again
                case.sent = again
            cost = self._record(key, attempt, demand, reply)
            if reply.verdict.kind.closes_lane:
                self._close(reply.verdict)  # before another call takes this one's place
        except LimbeckError as error:
            # An answer that cannot be kept must not be followed by another one that is paid for.
            self.stop(End("failed", error.message))
            raise
        finally:
            now = loop.time()
            self._allowance.settle(demand, reply, cost, sent_at, now)
            if self._allowance.reach.is_gone(now):
                self._close(reply.verdict)
            self._start_waiting(now)
        return reply

    async def _admit(self, call: Call, others: tuple[int, ...], refused: bool = False) -> Demand:
        if self.end:
            raise Stopped
        loop, demand = asyncio.get_running_loop(), worst_case(call, self._rates, self._excess)
        self._typical = demand
        if not self._waiting and self._allowance.may_start(demand, loop.time()):
            return self._allowance.start(demand, loop.time())
        ready: asyncio.Future[Demand] = loop.create_future()
        self._waiting.append(Waiting(demand, ready, others, refused))
        if not self._allowance.is_full:
            self._need.set()  # a lease is short; where only the window is, the next call to end makes room
        return await ready

    def _start_waiting(self, now: float) -> None:
        """Let waiting calls go, first come first served, as far as the allowance reaches."""
        self._let_go(now)
        if self.is_hungry:
            self.freed.set()

    def _let_go(self, now: float) -> None:
        while self._waiting:
            demand, ready, *_ = self._waiting[0]
            if not ready.done():
                if not self._allowance.may_start(demand, now):
                    if self._allowance.in_flight < self._allowance.window:
                        self._need.set()
                    return
                ready.set_result(self._allowance.start(demand, now))
            self._waiting.popleft()

    def _record(self, key: bytes, attempt: bytes, demand: Demand, reply: Reply) -> Amount:
        """Put one attempt on disk; what it cost."""
        kind = reply.verdict.kind
        if kind is VerdictKind.ANSWERED:
            return self._record_answer(key, attempt, demand, reply)
        # Neither provider documents what a call in doubt costs, so it is taken to cost all that was reserved.
        money = demand.money if kind.may_be_paid else Amount(0, 0, kind is not VerdictKind.UNREACHABLE)
        if reply.verdict.read_prompt:
            money = demand.prompt_cost(self._rates)
        meta: dict[str, Any] = {"tokens": money.tokens}
        if (usage := reply.usage) is not None:  # an error that says what it cost
            money = Amount(self._rates.cost(usage), usage.input_tokens + usage.output_tokens, 1)
            meta = self._counted(demand, usage)
        if self._noted:
            told = {"final": False, "kind": kind.value, "detail": reply.verdict.detail, "nano_usd": money.nano_usd}
            self._journal.append(Frame(Kind.FAILED, key, attempt, {**told, **meta}))
        self.delta.nano_usd += money.nano_usd
        return money

    def _record_answer(self, key: bytes, attempt: bytes, demand: Demand, reply: Reply) -> Amount:
        self._answers += 1
        if (usage := reply.usage) is None:  # it does not say what it cost: taken to be all that was reserved
            money, meta = demand.money, {"in": 0, "out": 0, "tokens": demand.money.tokens}
        else:
            money = Amount(self._rates.cost(usage), usage.input_tokens + usage.output_tokens, 1)
            meta = self._counted(demand, usage)
        told = {"teacher": self._name, "dialect": self._dialect, "nano_usd": money.nano_usd}
        self._journal.append(Frame(Kind.ANSWERED, key, attempt, {**told, **meta}, reply.body))
        self.delta.answered += 1
        self.delta.nano_usd += money.nano_usd
        return money

    def _counted(self, demand: Demand, usage: Usage) -> dict[str, Any]:
        """Take in what a reply says that it used; as the journal keeps it."""
        self.delta.input_tokens += usage.input_tokens
        self.delta.output_tokens += usage.output_tokens
        meta: dict[str, Any] = {"in": usage.input_tokens, "out": usage.output_tokens}
        if (excess := seen(demand, usage)) != Excess():  # so that the next start reserves it from its first call on
            meta |= {"teacher": self._name, "over": list(excess)}
        self._seen = self._seen.most(excess)
        self.delta.hidden, self.delta.overlong = self._seen
        self._reserve(self._excess.most(self._seen))
        return meta

    def _reserve(self, excess: Excess) -> None:
        """Reserve so much more for calls from now on, and for those that wait, too."""
        if excess != self._excess:
            self._excess = excess
            self._waiting = deque(w._replace(demand=grown(w.demand, self._rates, excess)) for w in self._waiting)

    async def renew_leases(self) -> None:
        """Keep the leases alive until `done`: every period, and at once where a call waits for one."""
        loop = asyncio.get_running_loop()
        while not self._done:
            asked_at = loop.time()
            self._need.clear()
            await self.renew()
            self._require_lease(loop.time())
            self._start_waiting(loop.time())
            self._look_at_disk(loop.time())
            await asyncio.sleep(self._until_renewal(asked_at, loop.time()))
            # Not asyncio.wait_for: up to 3.11 it loses a cancellation that comes together with the event.
            with anyio.move_on_after(PERIOD_S):
                await self._need.wait()

    def _until_renewal(self, asked_at: float, now: float) -> float:
        """Seconds that must pass: until a pause is over or the next request is there, else what spares the actors."""
        until = max(self._allowance.pause_until, self._allowance.due) - now
        return min(until, PERIOD_S) if until > 0 else max(0.0, SOONEST_S - (now - asked_at))

    def _prefer_smaller(self) -> bool:
        """The money left does not cover the first call that waits; put the cheapest before it, if another is."""
        cheapest = min(self._waiting, key=lambda entry: (entry.demand.money.nano_usd, entry.demand.money.tokens))
        if cheapest.demand.money == self._waiting[0].demand.money:
            return False
        self._waiting.remove(cheapest)
        self._waiting.appendleft(cheapest)
        self._need.set()
        return True

    def _require_lease(self, now: float) -> None:
        """Without a lease nothing is sent; without one for long, say so instead of waiting for ever."""
        if not self._waiting or self._leases is None or self._allowance.is_leased(now) or self._leased_at is None:
            self._leased_at = now
        elif now - self._leased_at > LEASELESS_S:
            self.stop(End("failed", "the actors that share out limits and money do not answer"))

    def done(self) -> None:
        """No more calls will come: let `renew_leases` end."""
        self._done = True
        self._need.set()

    async def renew(self) -> None:
        """Report, and take in what comes back."""
        if self._leases is None:
            return
        asked_at = asyncio.get_running_loop().time()
        allowance, waiting = self._allowance, len(self._waiting)
        head = self._waiting[0].demand if waiting else None
        if allowance.governed:  # first: money is asked for by whoever may send
            closed = self.end.detail if self.end and self.end.reason == "closed" else ""
            grant = await self._leases.grant(allowance.report(waiting, head or self._typical, asked_at, closed))
            if grant is not None:
                allowance.granted(grant, asked_at)
                if grant.closed:
                    self.stop(End("closed", grant.closed))
        if allowance.banked:
            account, wanted, need = allowance.account(waiting, head, asked_at)
            account = account._replace(lane=self._lane, answers=self._answers, excess=self._seen, wild=self._wild)
            advance = await self._leases.advance(account, wanted, need)
            if advance is not None:
                allowance.advanced(advance, asked_at)
                self._reserve(advance.excess.most(self._seen))
                if advance.exhausted and self._waiting and allowance.in_flight == 0 and not self._prefer_smaller():
                    self.stop(End("exhausted", " and ".join(advance.exhausted)))

    def _look_at_disk(self, now: float) -> None:
        if now - self._disk_at < DISK_EVERY_S:
            return
        self._disk_at = now
        try:
            has_room = self._journal.tend(self._allowance.in_flight)
        except LimbeckError as error:
            self.stop(End("failed", error.message))
            return
        if not has_room:
            self.stop(End("failed", f"low disk: {self._journal.path.parent} has no room for the answers in flight"))
