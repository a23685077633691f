"""One account's limits, shared by every worker of every run that uses it. Plain; the actor round it is `governor`.

A worker renews a few times a second: it says what it sent, what it has left and what it wants, and gets amounts that
it may spend until the next time. Amounts are handed out, never rates, so what all workers together may send is exact,
and a worker that dies takes at most one such amount with it.
"""

import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

from services.admission.charging import Charging, Counting
from services.admission.lease import LEASE_S, Grant, Report
from services.admission.pace import Pace, Wish
from services.admission.turns import Turns

Seconds = float

REFUND_S = 0.1  # tokens may come back sooner than the refill tells


@dataclass(slots=True)
class Client:
    """One worker as last heard of."""

    run: str
    seen_at: Seconds
    asking: bool
    window: int
    limits: dict[str, float]
    concurrency: int | None
    peak: int
    wanting: bool


class Pool:
    """Shares out what the account's pace allows."""

    def __init__(self, started: Seconds, counting: Counting | None = None) -> None:
        self._started = started
        self._pace = Pace(started, counting or Counting())
        self._clients: dict[str, Client] = {}
        self._closed: dict[str, str] = {}
        self._places = Turns()  # among the calls in flight
        self._calls = Turns()  # at whole calls, where a limit is scarce

    @property
    def charging(self) -> Charging:
        """How the server is believed to count tokens."""
        return self._pace.counting.charging

    def renew(self, report: Report, now: Seconds) -> Grant:
        """Take a report in and hand out what there is."""
        self._note(report, now)
        self._pace.follow(self._crew(now), report, now)
        buckets = self._pace.buckets
        # Who has no place among the calls in flight cannot use a request: turns at both would wait for each other.
        able = {worker for worker, client in self._clients.items() if client.window > 0}
        asking = self._asking(now, among=able or set(self._clients))
        for name, bucket in buckets.items():
            bucket.saw(report.call.get(name, 0.0), now)
        scarce = any(bucket.is_scarce(asking) for bucket in buckets.values())
        for bucket in buckets.values():
            bucket.refill({} if scarce else asking, now)
        for name, amount in report.returned.items():
            if name in buckets:
                buckets[name].give_back(report.worker, amount, now)
        self._pace.hear(report, now)
        self._pace.learn(report, self._crew(now), now)
        window = self._share_of_window(report, now)
        pause = max(0.0, self._pace.pause_until - now)
        amounts: dict[str, float] = {}
        wait = 0.0
        if window and not pause:
            amounts, wait = self._whole_calls(report, asking, now) if scarce else (self._amounts(report, now), 0.0)
        capacity = {name: bucket.capacity for name, bucket in buckets.items()}
        return Grant(amounts, capacity, window, self.charging, pause, self._closed.get(report.run, ""), wait)

    def forget(self, worker: str) -> None:
        """A worker is gone; what it held is counted as spent."""
        self._clients.pop(worker, None)

    def is_idle(self, now: Seconds, since_s: Seconds) -> bool:
        """Whether nobody has asked for `since_s` seconds."""
        last = max((c.seen_at for c in self._clients.values()), default=self._started)
        return now - last > since_s

    def _note(self, report: Report, now: Seconds) -> None:
        if report.closed:
            self._closed[report.run] = report.closed
        known = self._clients.get(report.worker)
        self._clients[report.worker] = Client(
            report.run, now, report.waits or report.in_flight > 0,
            max(known.window if known else 0, report.in_flight), report.limits, report.concurrency, report.peak,
            bool(report.wanted),
        )  # fmt: skip
        for worker in [w for w, c in self._clients.items() if now - c.seen_at > 30 * LEASE_S]:
            del self._clients[worker]

    def _alive(self, now: Seconds) -> list[Client]:
        return [c for c in self._clients.values() if now - c.seen_at <= LEASE_S]

    def _crew(self, now: Seconds) -> list[Wish]:
        return [Wish(c.limits, c.concurrency, c.window, c.peak) for c in self._alive(now)]

    def _asking(self, now: Seconds, in_flight: bool = False, among: Container[str] | None = None) -> dict[str, float]:
        """Weights of the workers that want something, or have calls in flight: even over runs, then over a run's."""
        asking = {
            worker: client.run
            for worker, client in self._clients.items()
            if (client.wanting or (in_flight and client.asking))
            and now - client.seen_at <= LEASE_S
            and (among is None or worker in among)
        }
        crews = Counter(asking.values())
        return {worker: 1 / (len(crews) * crews[run]) for worker, run in asking.items()}

    def _amounts(self, report: Report, now: Seconds) -> dict[str, float]:
        """The same share of every limit that is wanted, so that none lies unused behind the scarcest."""
        granted = {}
        for name, bucket in self._pace.buckets.items():
            granted[name] = bucket.grant(report.worker, report.wanted.get(name, 0.0), now)
        shares = [granted[name] / wanted for name, wanted in report.wanted.items() if wanted > 0 and name in granted]
        least = min(shares, default=1.0)
        if least < 1.0:
            self._pace.short_at = now
        for name, bucket in self._pace.buckets.items():
            usable = least * report.wanted.get(name, 0.0)
            # A part of a request is of no use: kept until there is more, it would leave close behind the next one.
            surplus = granted[name] - (int(usable + 1e-9) if name == "requests" else usable)
            if surplus > 1e-9:
                bucket.give_back(report.worker, surplus, now)
                granted[name] -= surplus
        return granted

    def _whole_calls(
        self, report: Report, asking: Mapping[str, float], now: Seconds
    ) -> tuple[dict[str, float], Seconds]:
        """(what whole calls take, or nothing; when to ask again), in turn and up to the size of the largest call. Parts
        of calls in the hands of many workers would starve all of them, and leave together once they are whole."""
        sizes = {
            n: min(report.call.get(n, 0.0), b.capacity) for n, b in self._pace.buckets.items() if report.wanted.get(n)
        }
        sizes = {name: size for name, size in sizes.items() if size > 0}
        if not sizes:
            return {}, 0.0
        count = math.inf
        for name, size in sizes.items():
            bucket = self._pace.buckets[name]
            most = max(bucket.largest, size) if bucket.is_scarce(asking) else math.inf
            count = min(count, (min(bucket.available(report.worker, report.call[name]), most) + 1e-9) // size)
        if count < 1:
            self._pace.short_at = now
            waits = {n: self._pace.buckets[n].wait(report.worker, size, report.call[n]) for n, size in sizes.items()}
            return {}, max(w if n == "requests" else min(w, REFUND_S) for n, w in waits.items())
        runs = {worker: self._clients[worker].run for worker in asking}
        if not self._calls.is_due(
            report.worker, runs, max(b.largest / b.per_minute for b in self._pace.buckets.values())
        ):
            return {}, 0.0
        amounts = {
            n: self._pace.buckets[n].grant(report.worker, min(report.wanted[n], count * size), now, report.call[n])
            for n, size in sizes.items()
        }
        # Of a call larger than a limit but a part is granted; the rest is a debt.
        cost = max(amounts[n] / size * report.call[n] / self._pace.buckets[n].per_minute for n, size in sizes.items())
        self._calls.took(report.worker, report.run, cost)
        return amounts, 0.0

    def _share_of_window(self, report: Report, now: Seconds) -> int:
        """This worker's part of the calls in flight: even over runs, then over a run's workers, and never more than
        the others leave. What does not divide evenly goes round: with 10 calls for 4 workers, two in turn get 3."""
        me = self._clients[report.worker]
        if not me.asking:
            me.window = 0
            return 0
        asking = self._asking(now, in_flight=True)
        even = {worker: int(self._pace.window.size * weight + 1e-9) for worker, weight in asking.items()}
        over = self._pace.window.size - sum(even.values())
        self._places.took(report.worker, report.run, report.ended)
        runs = {worker: self._clients[worker].run for worker in asking}
        fair = even[report.worker] + int(over > 0 and self._places.is_among(report.worker, runs, over))
        others = sum(c.window for c in self._alive(now) if c is not me)
        granted = max(0, min(fair, self._pace.window.size - others))
        me.window = max(report.in_flight, granted)
        return granted
