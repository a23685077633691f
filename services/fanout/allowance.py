"""What one worker may send now: its leases on the account's limits and on the run's money. Plain, clock injected.

Both leases are spent call by call without asking anybody, and renewed a few times a second: what is left beyond the
next period's need goes back, what is missing is asked for. A lease that could not be renewed runs out, so a worker
that has lost its governor or its cashier stops rather than guesses.
"""

import math
from dataclasses import dataclass, field

from schemas.call import Reply, VerdictKind
from schemas.money import Amount
from services.admission.charging import Charging
from services.admission.lease import LEASE_S, PERIOD_S, Grant, Report
from services.fanout.reach import PROBE_S, Reach
from services.fanout.size import Demand
from services.ledger.books import NOTHING, Account, Advance

Seconds = float
LATELY_AT_FIRST = 8.0  # calls a second
LATELY_S = 10.0  # over which their mean runs
AHEAD = 1.5  # periods' worth to hold, so that calls go on leaving while the next lease is asked for
REST_S = 0.1  # after a refusal that no known limit explains
KNOWN = 20  # answers before their mean is used
RATES = ("requests", "tokens", "input", "output")


@dataclass(slots=True)
class Counts:
    """What came of calls since the last renewal."""

    peak: int = 0
    ended: int = 0
    answered: int = 0
    refused: int = 0
    ramp: int = 0
    overloaded: int = 0
    retry_after: Seconds = 0.0
    unused: float = 0.0


@dataclass(slots=True)
class Allowance:
    """One worker's leases. `governed` is False for a lane without a socket, `banked` for a run without a budget."""

    run: str
    worker: str
    limits: dict[str, float]
    concurrency: int | None
    governed: bool
    banked: bool
    window: int = 0
    in_flight: int = 0
    reach: Reach = field(default_factory=Reach)
    _levels: dict[str, float] = field(default_factory=dict)
    _refunds: dict[str, float] = field(default_factory=dict)  # for the governor, not for the next call
    _capacity: dict[str, float] = field(default_factory=dict)
    _charging: Charging = Charging.REFUND
    _usual_output: float = 0.0  # tokens of an answer, a running mean
    _answers: int = 0
    _until: Seconds = float("-inf")
    _bank_until: Seconds = float("-inf")
    _pause_until: Seconds = float("-inf")
    due: Seconds = float("-inf")  # when the next request is there
    _idle: Amount = NOTHING
    _flying: Amount = NOTHING
    _spent: Amount = NOTHING
    _asked: Amount | None = None  # of the cashier; None where no call may leave
    _is_short: bool = True  # it has not given all of that
    _counts: Counts = field(default_factory=Counts)
    _measured_at: Seconds = float("-inf")
    _started: int = 0
    pace: float = 0.0  # calls that leave in a second, now
    lately: float = LATELY_AT_FIRST  # the same as a running mean
    _hint: Reply | None = None
    _hint_between: tuple[Seconds, Seconds] = (0.0, 0.0)  # its call was sent, and its answer was there

    def may_start(self, demand: Demand, now: Seconds) -> bool:
        """Whether a call that takes `demand` may leave now."""
        if self.in_flight >= self.window or now < self._pause_until:
            return False
        if self.governed and now > self._until:
            return False
        if self.banked and (now > self._bank_until or not self._idle.covers(demand.money)):
            return False
        return self._has_rates(demand)

    def _has_rates(self, demand: Demand) -> bool:
        """Whether the leases on limits cover a call."""
        demand = self._rated(demand)
        return all(
            level >= min(demand.rate(name), self._capacity.get(name, 1.0)) - 1e-9
            for name, level in self._levels.items()
        )

    @property
    def is_full(self) -> bool:
        """Whether as many calls are in flight as may be."""
        return 0 < self.window <= self.in_flight

    def is_leased(self, now: Seconds) -> bool:
        """Whether the leases that calls need are in force."""
        return (not self.governed or now <= self._until) and (not self.banked or now <= self._bank_until)

    def _rated(self, demand: Demand) -> Demand:
        """What to take from the limits for a call: the most that it can use, or what one usually uses where the server
        counts tokens as they are produced."""
        if self._charging is Charging.LIVE and self._answers >= KNOWN:
            return demand._replace(output_tokens=min(demand.output_tokens, int(self._usual_output * 1.1) + 1))
        return demand

    def start(self, demand: Demand, now: Seconds) -> Demand:
        """A call leaves; what to settle it with."""
        demand = self._rated(demand)
        if self.reach.is_lost:
            self._pause_until = max(self._pause_until, now + PROBE_S)  # one feels for the server
        self.in_flight += 1
        self._started += 1
        self._counts.peak = max(self._counts.peak, self.in_flight)
        for name in self._levels:
            self._levels[name] -= demand.rate(name)
        self._flying = self._flying.plus(demand.money)
        if self.banked:
            self._idle = self._idle.minus(demand.money)
        return demand

    def settle(self, demand: Demand, reply: Reply, cost: Amount, sent_at: Seconds, now: Seconds) -> None:
        """A call came back and cost `cost`; what it did not use is ours again."""
        self.in_flight -= 1
        self._flying = self._flying.minus(demand.money)
        self._spent = self._spent.plus(cost)
        if self.banked:
            self._idle = self._idle.plus(demand.money.minus(cost))
        self._count(reply)
        self.reach.heard(reply.verdict.kind, now)
        if self.reach.is_lost:
            self._pause_until = max(self._pause_until, now + PROBE_S)
        if reply.verdict.kind is VerdictKind.RATE_LIMITED and self.governed and not self._levels:
            # Nobody knows the limit: until the governor has heard of it, others would be refused as quickly.
            self._pause_until = max(self._pause_until, now + REST_S)
        if reply.hint is not None:
            self._hint, self._hint_between = reply, (sent_at, now)
        if reply.verdict.kind is VerdictKind.ANSWERED and reply.usage is not None:
            used = reply.usage
            self._answers += 1
            self._usual_output += (used.output_tokens - self._usual_output) / min(self._answers, 100)
            demand = self._rated(demand)  # what the server never took does not come back
            extra = Demand(demand.input_tokens - used.input_tokens, demand.output_tokens - used.output_tokens, NOTHING)
            self._counts.unused += max(0, demand.ceiling - used.output_tokens)
            for name in self._levels:
                if name == "requests":
                    continue
                keep = name == "tokens" and self._charging is Charging.KEEP
                # Of the answer nothing; the text was an estimate of ours.
                back = extra.input_tokens if keep else extra.rate(name)
                # Where one call fills a limit, what it did not use would let another out that nobody granted.
                own = self._levels if self._capacity.get(name, math.inf) >= 2 * demand.rate(name) else self._refunds
                own[name] = own.get(name, 0.0) + back

    def _count(self, reply: Reply) -> None:
        counts, kind = self._counts, reply.verdict.kind
        counts.ended += 1
        counts.answered += kind is VerdictKind.ANSWERED
        counts.refused += kind is VerdictKind.RATE_LIMITED
        counts.ramp += kind is VerdictKind.RAMP_LIMITED
        counts.overloaded += kind in (VerdictKind.OVERLOADED, VerdictKind.TRANSIENT)
        if kind in (VerdictKind.RATE_LIMITED, VerdictKind.OVERLOADED, VerdictKind.TRANSIENT):
            counts.retry_after = max(counts.retry_after, reply.verdict.retry_after or 0.0)

    def report(self, waiting: int, typical: Demand | None, now: Seconds, closed: str = "") -> Report:
        """What to tell the governor, for `waiting` calls of about the size of `typical`."""
        self._measure(now)
        counts, hint = self._counts, self._hint
        typical = self._rated(typical) if typical else None
        able = self._able(waiting, typical, now)
        ahead = 0.0 if self.is_full and self._is_scarce(typical) else self._ahead(able)
        wanted, returned = {}, {}
        whole = self._whole_calls(typical)
        for name, level in self._levels.items():
            # Without a place, or without the other limits' part of a call, they are of no use.
            target = self._target(name, min(ahead, whole), typical) if self.window else 0.0
            surplus = max(0.0, level - target) or min(0.0, level)
            self._levels[name] -= surplus
            if surplus := surplus + self._refunds.pop(name, 0.0):
                returned[name] = surplus
        for name in RATES:
            short = self._target(name, ahead, typical) - self._levels.get(name, 0.0)
            if short > 0:
                # Requests are granted whole.
                wanted[name] = float(math.ceil(short)) if name == "requests" else short
        self._hint, self._counts = None, Counts()
        return Report(
            self.run, self.worker, self.limits, self.concurrency, waiting > 0, wanted if able else {}, returned,
            self.in_flight, counts.peak, counts.ended, counts.answered, counts.refused, counts.ramp, counts.overloaded,
            counts.retry_after, hint.hint if hint else None, (now - self._hint_between[0], now - self._hint_between[1]),
            counts.unused, closed, {name: typical.rate(name) for name in RATES} if typical else {},
        )  # fmt: skip

    def _measure(self, now: Seconds) -> None:
        """How many calls leave in a second."""
        past = now - self._measured_at
        if past > PERIOD_S / 2:
            self.pace = max(self._started / past, 0.7 * self.pace)
            # Long ago is between two stages, or never: that says little of the lane.
            self.lately += (self._started / past - self.lately) * (1 - math.exp(-min(past, 1.0) / LATELY_S))
            self._measured_at, self._started = now, 0

    def _ahead(self, waiting: int) -> float:
        """Calls to hold leases for: as many as may leave before the next renewal, and no more than wait."""
        return min(waiting, max(1.0, AHEAD * PERIOD_S * self.pace, self.window - self.in_flight))

    def _able(self, waiting: int, typical: Demand | None, now: Seconds) -> int:
        """Of the calls that wait, those that nothing but a limit keeps: leases for others would gather until the money
        is there, or the server again, and leave together. One may feel for a server that is away, if it is paid for: a
        lease that waits for money would keep it from a worker that has the money, and waits for the lease."""
        if self.reach.is_lost:
            waiting = min(waiting, 1)
        elif now < self._pause_until:
            return 0
        if typical is None or not (self.banked and self._is_short):
            return waiting
        paid = [have // need for have, need in zip(self._idle, typical.money, strict=True) if need > 0]
        return min(waiting, max(0, min(paid, default=waiting)))

    def _is_scarce(self, typical: Demand | None) -> bool:
        """Whether a limit holds less than two calls: one that is kept for when a place is free would leave close behind
        another worker's."""
        return typical is not None and any(limit < 2 * typical.rate(name) for name, limit in self._capacity.items())

    def _whole_calls(self, typical: Demand | None) -> int:
        """How many calls the leases cover."""
        sizes = {n: min(typical.rate(n), self._capacity.get(n, 1.0)) for n in self._levels} if typical else {}
        covered = [self._levels[n] / size + 1e-9 for n, size in sizes.items() if size > 0]
        return max(0, int(min(covered, default=0.0)))

    def _target(self, name: str, ahead: float, typical: Demand | None) -> float:
        """What to hold of a limit for `ahead` calls: not more than a burst, lest the whole of it leaves at once."""
        if typical is None or not ahead:
            return 0.0
        one = typical.rate(name)
        return min(ahead * one, max(one, self._capacity.get(name, float("inf"))))

    def granted(self, grant: Grant, asked_at: Seconds) -> None:
        """The governor's answer to a report that was made at `asked_at`."""
        self.window, self._charging, self._capacity = grant.window, grant.charging, grant.capacity
        self._levels = {n: self._levels.get(n, 0.0) + grant.amounts.get(n, 0.0) for n in grant.capacity}
        self._until, self.due = asked_at + LEASE_S, asked_at + grant.wait_s
        if grant.pause_s:
            self._pause_until = max(self._pause_until, asked_at + grant.pause_s)

    def account(self, waiting: int, next_call: Demand | None, now: Seconds) -> tuple[Account, Amount, Amount]:
        """(sums, wanted, the next call's need) to tell the cashier. Idle money that cannot pay for the next call goes
        back, for another worker may need just that; so does money of a lease that has run out, and all of it where no
        call may leave for want of a place, or in a pause: whose turn it is must find it. Where it is short it comes
        before a rate, elsewhere after."""
        self._measure(now)
        need = next_call.money if next_call and waiting else NOTHING
        if self.governed and not (self.window and next_call and (self._is_short or self._has_rates(next_call))):
            waiting = 0
        if now < self._pause_until:
            waiting = 0
        target = need.times(self._ahead(waiting))
        keep = NOTHING
        if waiting and now <= self._bank_until and self._idle.covers(need):
            keep = Amount(*map(min, self._idle, target))
        self._idle = keep
        wanted = Amount(*(max(0, a - b) for a, b in zip(target, keep, strict=True)))
        missing = Amount(*(max(0, a - b) for a, b in zip(need, keep, strict=True)))
        self._asked = wanted if waiting else None
        return Account(self._spent, self._flying.plus(keep)), wanted, missing

    def advanced(self, advance: Advance, asked_at: Seconds) -> None:
        """The cashier's answer."""
        if self._asked is not None:
            self._is_short = not advance.amount.covers(self._asked)
        self._idle = NOTHING if advance.recalled else self._idle.plus(advance.amount)
        self._bank_until = asked_at + LEASE_S

    @property
    def pause_until(self) -> Seconds:
        return self._pause_until
