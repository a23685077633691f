"""Workers, a pool and a provider's limiter on a clock that jumps from event to event: a minute in half a second."""

import bisect
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from schemas.call import RateHint, Reply, Verdict, VerdictKind
from schemas.money import Amount, Usage
from services.admission.lease import PERIOD_S
from services.admission.pool import Pool
from services.fake_teacher.meter import Charge, Meters
from services.fanout.allowance import Allowance
from services.fanout.size import Demand
from services.ledger.books import NOTHING, Books

SOONEST_S = 0.05
EPOCH = 100000.0  # of the governor's clock, which is not that of its workers
Draw = Callable[[str, random.Random], Demand]


@dataclass
class Provider:
    """A limiter with a burst of `burst_s` seconds. `gives_back`: unused max_tokens are not charged."""

    limits: dict[str, float | None]
    burst_s: float = 1.0
    gives_back: bool = True
    headers: bool = True
    told: dict[str, float] = field(default_factory=dict)  # limits that its headers give in place of the true ones
    latency_s: float = 0.2
    in_flight_limit: int | None = None
    counts_input: int | None = None  # tokens of a call's text, where that is not what we think
    asks_s: float | None = None  # to wait, of whom it refuses
    away: tuple[float, float] = (0.0, 0.0)  # from when to when nobody can reach it
    meters: Meters = field(init=False)
    admitted: list[tuple[float, float]] = field(default_factory=list)  # (time, tokens charged)
    produced: list[tuple[float, float]] = field(default_factory=list)  # tokens charged with the answer
    refusals: list[float] = field(default_factory=list)  # times
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.meters = Meters(self.limits, self.burst_s, 0.0)

    @property
    def refused(self) -> int:
        return len(self.refusals)

    def refused_until(self, time: float) -> int:
        return bisect.bisect_right(self.refusals, time)

    def served_in_any_minute(self) -> list[int]:
        """Requests of the minute that ends with each request."""
        times = [when for when, amount in self.admitted if amount]
        return [at + 1 - bisect.bisect_right(times, when - 60) for at, when in enumerate(times)]

    def take(self, demand: Demand, output: int, now: float) -> Reply | None:
        """A refusal, or None where the call is served."""
        if self.away[0] <= now < self.away[1]:
            return Reply(Verdict(VerdictKind.UNREACHABLE))
        text = self.counts_input or demand.input_tokens
        charge = Charge(1.0, text if self.gives_back else text + demand.output_tokens, text, 0.0)
        over = self.in_flight_limit is not None and self.in_flight >= self.in_flight_limit
        hit = None if over else self.meters.admit(charge, now)
        if over or hit:
            self.refusals.append(now)
            wait = 0.05 if over else hit[1] if hit else 0.0
            return Reply(Verdict(VerdictKind.RATE_LIMITED, "", wait if self.asks_s is None else self.asks_s), 429)
        self.in_flight += 1
        self.admitted.append((now, charge.tokens))
        return None

    def answer(self, demand: Demand, output: int, now: float) -> Reply:
        self.in_flight -= 1
        if self.gives_back:
            self.meters.take(Charge(0.0, output, 0.0, output), now)
            self.produced.append((now, output))
        hint = None
        if self.headers:
            for meter in self.meters.meters.values():
                meter.refill(now)
            found = self.meters.meters
            left = {n: max(0.0, m.level) for n, m in found.items()}
            hint = RateHint({n: m.per_minute for n, m in found.items()}, left)
            hint = RateHint(self.told, self.told) if self.told else hint
        usage = Usage(self.counts_input or demand.input_tokens, output)
        return Reply(Verdict(VerdictKind.ANSWERED), 200, b"", usage, hint)


class Simulation:
    """`workers` maps a worker to its run. Each has calls without end, of one `demand` or of those that it draws; with
    `books` it ends where the money does, and `wild` is what a call may cost."""

    def __init__(
        self, provider: Provider, workers: dict[str, str], limits: dict[str, float], demand: Demand | Draw,
        output: Callable[[random.Random], int], concurrency: int | None = None, seed: int = 0,
        jitter_s: float = 0.01, books: Books | None = None, wild: Amount = NOTHING,
    ) -> None:  # fmt: skip
        self.provider, self.output = provider, output
        self.draw: Draw = demand if callable(demand) else lambda worker, rng: demand
        self.books, self.wild, self.ended, self.answers = books, wild, set[str](), dict.fromkeys(workers, 0)
        self.rng, self.jitter_s = random.Random(seed), jitter_s
        self.next = {worker: self.draw(worker, self.rng) for worker in workers}
        self.pool = Pool(EPOCH)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.sent: dict[str, int] = dict.fromkeys(workers, 0)
        self.allowances = {
            name: Allowance(run, name, limits, concurrency, governed=True, banked=books is not None)
            for name, run in workers.items()
        }
        self.resting = dict.fromkeys(workers, 0)
        self._renewed_at = dict.fromkeys(workers, -1.0)
        for name in workers:
            self.at(self.rng.random() * 0.05, partial(self.renew, name))

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, action))

    def run(self, seconds: float) -> None:
        while self._events and self._events[0][0] <= seconds:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = seconds

    def stall(self, worker: str) -> bool:
        """Whether this renewal comes late: a busy machine."""
        return self.rng.random() < 0.05

    def renew(self, name: str, again: bool = True) -> None:
        if name in self.ended:
            return
        allowance = self.allowances[name]
        waiting = self.supply(name)
        report = allowance.report(waiting, self.next[name], self.now)
        allowance.granted(self.pool.renew(report, EPOCH + self.now), self.now)
        self.bank(name, waiting)
        self._renewed_at[name] = self.now
        self.fill(name)
        if again:
            pause = PERIOD_S * (2 if self.stall(name) else 1)
            if allowance.due > self.now:
                pause = min(allowance.due - self.now, PERIOD_S) + 0.005 * self.rng.random()
            self.at(self.now + pause, lambda: self.renew(name))

    def bank(self, name: str, waiting: int) -> None:
        if self.books is None:
            return
        allowance = self.allowances[name]
        account, wanted, need = allowance.account(waiting, self.next[name], self.now)
        account = account._replace(answers=self.answers[name], wild=self.wild)
        advance = self.books.renew(name, account, wanted, need)
        allowance.advanced(advance, self.now)
        if advance.exhausted and waiting and not allowance.in_flight:
            self.ended.add(name)
            self.pool.forget(name)

    def supply(self, name: str) -> int:
        """Calls at hand: as many as a worker takes on, less those that rest before another try."""
        allowance = self.allowances[name]
        room = allowance.window + max(16, allowance.window // 2)
        return max(0, room - allowance.in_flight - self.resting[name])

    def fill(self, name: str) -> None:
        allowance = self.allowances[name]
        while name not in self.ended and self.supply(name) and allowance.may_start(self.next[name], self.now):
            demand = self.next[name]
            taken, sent_at = allowance.start(demand, self.now), self.now
            self.next[name] = self.draw(name, self.rng)
            self.sent[name] += 1
            delay = self.rng.random() * self.jitter_s
            self.at(self.now + delay, partial(self.arrive, name, demand, taken, sent_at))
        if (
            allowance.in_flight < allowance.window and self.now - self._renewed_at[name] >= SOONEST_S
            and self.now >= allowance.due
        ):  # fmt: skip
            self.renew(name, again=False)

    def arrive(self, name: str, demand: Demand, taken: Demand, sent_at: float) -> None:
        output = self.output(self.rng)
        refusal = self.provider.take(demand, output, self.now)
        if refusal is not None:
            self.at(self.now + 0.002, lambda: self.back(name, refusal, taken, sent_at))
            return
        latency = self.provider.latency_s * (0.5 + self.rng.random())
        self.at(self.now + latency, lambda: self.answered(name, demand, output, taken, sent_at))

    def answered(self, name: str, demand: Demand, output: int, taken: Demand, sent_at: float) -> None:
        self.answers[name] += 1
        self.back(name, self.provider.answer(demand, output, self.now), taken, sent_at)

    def back(self, name: str, reply: Reply, taken: Demand, sent_at: float) -> None:
        answered = reply.verdict.kind is VerdictKind.ANSWERED
        self.allowances[name].settle(taken, reply, taken.money if answered else Amount(0, 0, 1), sent_at, self.now)
        if not answered:
            self.resting[name] += 1
            self.at(self.now + self.rng.random() * 0.5 + (reply.verdict.retry_after or 0), lambda: self.rested(name))
        self.fill(name)

    def rested(self, name: str) -> None:
        self.resting[name] -= 1
        self.fill(name)

    def used(self, start: float, end: float, limit: float, tokens: bool) -> float:
        """The share of a limit a minute that was charged between two times."""
        charges = [(when, amount if tokens else 1) for when, amount in self.provider.admitted]
        charges += self.provider.produced if tokens else []
        charged = sum(amount for when, amount in charges if start <= when < end)
        return charged / (limit / 60 * (end - start))

    @property
    def refused_share(self) -> float:
        served = sum(self.sent.values())
        return self.provider.refused / max(1, served)
