"""One account's limits, shared by every worker of every run that uses it. Plain; the actor round it is `governor`.

A worker renews a few times a second: it says what it sent, what it has left and what it wants, and gets amounts that
it may spend until the next time. Amounts are handed out, never rates, so what all workers together may send is exact,
and a worker that dies takes at most one such amount with it.
"""

import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.call import RateHint
from services.admission.bucket import Bucket
from services.admission.charging import Charging, Counting
from services.admission.stray import MOST, Stray
from services.admission.turns import Turns
from services.admission.window import Window

Seconds = float
Amounts = Mapping[str, float]  # by `requests`, `tokens`, `input`, `output`

PERIOD_S = 0.25  # between two renewals of a busy worker
LEASE_S = 2.0  # how long a lease may be used, and how long a worker that is not heard of counts
REFUND_S = 0.1  # tokens may come back sooner than the refill tells
EPISODE_S = 1.0
AGO_S = 0.5  # refusals of calls that left before a lane slowed down come back, and are reported, for so long
ENOUGH = 20  # calls that an episode needs to be judged by, unless it lasts ten times as long
MANY = 0.02  # refused of sent: beyond jitter
UNKNOWN = 0.3  # refused of sent: a limit that nobody named
OVERLOAD = 0.2  # overloaded of sent: not the odd error
SOME = 3  # refused of an episode: more than chance
FLOOD = 0.1  # refused of sent: something is wrong with what is believed of the limits
SLOWER, RAMP_SLOWER = 0.95, 0.75
RECOVERY = 0.005  # of the limit a second, and as much again for every `QUIET_S` without many refusals
QUIET_S, LONG_QUIET_S = 10.0, 30.0
LOOK_S = 6.0  # after a lane slowed down, to see whether it helped
WELL_BELOW = 0.96  # of a rate that was answered
GUESS = 0.95  # of the rate that was answered while other calls were refused
PROBE = 0.03  # more of it is tried next, each second
CAREFUL, NEAR = 0.1, 0.03  # of that step, so near the rate that refusals began at last
BACK = 0.01  # less of it, after the odd refusal
TELLING = 10  # answers of an episode that tell a rate
LEAST_PROBE = 6.0  # requests a minute
RAMP_HOLD_S = 900.0  # OpenAI: at most half as much again in 15 minutes (rate limits guide, read 2026-11-23)


class Report(NamedTuple):
    """What a worker says when it renews. Counts since the last time."""

    run: str
    worker: str
    limits: dict[str, float]
    concurrency: int | None
    wanted: dict[str, float]  # to add to what it keeps; {} where it wants nothing
    returned: dict[str, float]
    in_flight: int = 0
    peak: int = 0
    ended: int = 0  # attempts, whatever came of them
    answered: int = 0
    refused: int = 0
    ramp: int = 0
    overloaded: int = 0
    retry_after: Seconds = 0.0
    hint: RateHint | None = None
    hint_ages: tuple[Seconds, Seconds] = (0.0, 0.0)  # since its call was sent, and since its answer was there
    unused: float = 0.0  # tokens that answered calls could have used but did not
    closed: str = ""  # why no call of this account can succeed
    call: Amounts = {}  # what one takes


class Grant(NamedTuple):
    """What a worker may do for `LEASE_S` seconds."""

    amounts: dict[str, float]
    capacity: dict[str, float]  # of each limit; a larger demand may be sent once this much is held
    window: int
    charging: Charging
    pause_s: Seconds
    closed: str = ""  # another worker of the run found that no call can succeed
    wait_s: Seconds = 0.0  # until there is a request for who got none; 0: not known


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


@dataclass(slots=True)
class Pool:
    """Buckets for the limits that are known, a window for the rest."""

    started: Seconds
    counting: Counting = field(default_factory=Counting)
    _buckets: dict[str, Bucket] = field(default_factory=dict)
    _learned: dict[str, float] = field(default_factory=dict)
    _window: Window = field(default_factory=Window)
    _cap: int | None = None
    _clients: dict[str, Client] = field(default_factory=dict)
    _closed: dict[str, str] = field(default_factory=dict)
    _stray: Stray = field(default_factory=Stray)
    _episode_at: Seconds = 0.0
    _ended: int = 0
    _answered: int = 0
    _refused: int = 0
    _overloaded: int = 0
    _asked_until: Seconds = float("-inf")  # what Retry-After said last, whichever worker heard it
    _guess: float | None = None  # requests a minute, where nobody says
    _refused_at: float = math.inf  # the rate that refusals began at last
    _ramp_until: Seconds = float("-inf")
    _pause_until: Seconds = float("-inf")
    _recovered_at: Seconds = 0.0
    _slowed_at: Seconds = 0.0
    _settled_at: Seconds = 0.0
    _unaware: int = (
        0  # calls that had left before the limit, or how it counts, was known: their refusals say nothing of it
    )
    _short_at: Seconds = float("-inf")
    _places: Turns = field(default_factory=Turns)  # among the calls in flight
    _calls: Turns = field(default_factory=Turns)  # at whole calls, where a limit is scarce

    def __post_init__(self) -> None:
        self._episode_at = self._recovered_at = self._settled_at = self.started
        self._slowed_at = self.started - 2 * LOOK_S

    @property
    def charging(self) -> Charging:
        """How the server is believed to count tokens."""
        return self.counting.charging

    def renew(self, report: Report, now: Seconds) -> Grant:
        """Take a report in and hand out what there is."""
        self._note(report, now)
        self._apply_limits(now)
        # Who has no place among the calls in flight cannot use a request: turns at both would wait for each other.
        able = {worker for worker, client in self._clients.items() if client.window > 0}
        asking = self._asking(now, among=able or set(self._clients))
        for name, bucket in self._buckets.items():
            bucket.saw(report.call.get(name, 0.0), now)
        scarce = any(bucket.is_scarce(asking) for bucket in self._buckets.values())
        for bucket in self._buckets.values():
            bucket.refill({} if scarce else asking, now)
        for name, amount in report.returned.items():
            if name in self._buckets:
                self._buckets[name].give_back(report.worker, amount, now)
        self._listen(report, now)
        self._learn(report, now)
        window = self._share_of_window(report, now)
        pause = max(0.0, self._pause_until - now)
        amounts: dict[str, float] = {}
        wait = 0.0
        if window and not pause:
            amounts, wait = self._whole_calls(report, asking, now) if scarce else (self._amounts(report, now), 0.0)
        capacity = {name: bucket.capacity for name, bucket in self._buckets.items()}
        return Grant(amounts, capacity, window, self.charging, pause, self._closed.get(report.run, ""), wait)

    def forget(self, worker: str) -> None:
        """A worker is gone; what it held is counted as spent."""
        self._clients.pop(worker, None)

    def is_idle(self, now: Seconds, since_s: Seconds) -> bool:
        """Whether nobody has asked for `since_s` seconds."""
        last = max((c.seen_at for c in self._clients.values()), default=self.started)
        return now - last > since_s

    def _note(self, report: Report, now: Seconds) -> None:
        if report.closed:
            self._closed[report.run] = report.closed
        known = self._clients.get(report.worker)
        self._clients[report.worker] = Client(
            report.run, now, bool(report.wanted) or report.in_flight > 0,
            max(known.window if known else 0, report.in_flight), report.limits, report.concurrency, report.peak,
            bool(report.wanted),
        )  # fmt: skip
        for worker in [w for w, c in self._clients.items() if now - c.seen_at > 30 * LEASE_S]:
            del self._clients[worker]

    def _alive(self, now: Seconds) -> list[Client]:
        return [c for c in self._clients.values() if now - c.seen_at <= LEASE_S]

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

    def _apply_limits(self, now: Seconds) -> None:
        """The smallest of what the live specs say and the server's headers teach."""
        alive = self._alive(now)
        limits: dict[str, float] = dict(self._learned)
        if self._guess is not None:
            limits["requests"] = min(self._guess, limits.get("requests", self._guess))
        for client in alive:
            for name, value in client.limits.items():
                limits[name] = min(value, limits.get(name, value))
        if self._learned and not self._buckets:
            self._unaware = sum(client.window for client in alive)
            self._ended = self._answered = self._refused = 0
        for name, value in limits.items():
            if name not in self._buckets:
                self._buckets[name] = Bucket(value, now, whole=name == "requests")
            self._buckets[name].limit_to(value)
            self._buckets[name].guessed = name == "requests" and value == self._guess
        for name in [name for name in self._buckets if name not in limits]:
            del self._buckets[name]
        if self._buckets:
            self._window.open()
        caps = [c.concurrency for c in alive if c.concurrency is not None]
        cap = min(caps) if caps else None
        if cap != self._cap:
            self._cap, self._window = cap, Window(cap)

    def _listen(self, report: Report, now: Seconds) -> None:
        """Take in what the server's headers say: its limits, and an upper bound of what is left."""
        hint = report.hint
        if hint is None:
            return
        self._learned.update(hint.limits)
        for name, remaining in hint.remaining.items():
            if bucket := self._buckets.get(name):
                gap = bucket.bound(remaining, report.hint_ages, now)
                if name == "tokens":
                    is_short = now - self._short_at < EPISODE_S
                    self.counting.hear(gap, report.call.get(name, 0.0), bucket, is_short, now)

    def _count_tokens(self, report: Report, now: Seconds) -> None:
        bucket = self._buckets.get("tokens")
        if bucket is None:
            return
        call = report.call.get("tokens", bucket.call)
        stray = self._stray.share * report.ended
        if self.counting.count(report.unused, report.refused, stray, call, bucket, not self._learned, now):
            self._begin_episode(now)
            self._unaware = sum(client.peak for client in self._alive(now))

    def _learn(self, report: Report, now: Seconds) -> None:
        """Adapt to refusals: shorter bursts, then a smaller share of the limit; the window where none is known."""
        if self._unaware > 0:
            self._unaware -= report.ended
        elif now >= self._episode_at:
            self._ended += report.ended
            self._answered += report.answered
            self._refused += report.refused
        self._count_tokens(report, now)
        peak = sum(c.peak for c in self._alive(now))
        self._window.answered(report.ended - report.refused - report.overloaded, peak, now)
        self._asked_until = max(self._asked_until, now + report.retry_after)
        if report.overloaded:
            self._window.hold(now, now + EPISODE_S)
            self._overloaded += report.overloaded
        if report.ramp:
            self._slow_for_ramp(now)
        if report.refused and not self._buckets and self._is_too_many():
            self._cut(now)
        past = now - self._episode_at
        if past >= EPISODE_S and (self._ended >= ENOUGH or past >= 10 * EPISODE_S):
            self._judge_episode(past, now)
        if now >= max(self._ramp_until, self._slowed_at + LOOK_S):
            for bucket in self._buckets.values():
                bucket.recover(RECOVERY * min(1.0, now - self._recovered_at), 1 + (now - self._slowed_at) / QUIET_S)
        self._recovered_at = now

    def _judge_episode(self, past: Seconds, now: Seconds) -> None:
        if self._overloaded > OVERLOAD * self._ended:
            self._cut(now)  # beyond the odd error: too many calls at once
        for_pace, refused = self._blame()
        share = for_pace / max(1, self._ended) if for_pace >= SOME else 0.0  # one or two are chance
        if share > MANY and self._is_unclear(share, past, now):
            self._cut(now)
            return
        believed = self.charging
        if share > MANY:
            self._slow_down(share, past, now)
        elif self._guess is not None and refused:
            self._guess *= 1 - BACK
        elif self._guess is not None and now >= self._slowed_at + LOOK_S:
            self._probe(self._guess, past, now)
        # One cause at a time: where tokens turned out to be counted otherwise, bursts were not the matter.
        if refused and self._buckets and self.charging is believed:
            for bucket in self._buckets.values():
                bucket.tighten()
            if share > FLOOD and self._ended >= ENOUGH:
                self._cut(now)
        self._begin_episode(now + (AGO_S if share > MANY else 0.0))

    def _begin_episode(self, now: Seconds) -> None:
        self._episode_at, self._ended, self._answered, self._refused, self._overloaded = now, 0, 0, 0, 0

    def _pace(self) -> tuple[str, float]:
        """(what holds the pace, where it stands)."""
        if self._guess is not None:
            return "guess", self._guess
        if self._buckets:
            return "factor", min(bucket.factor for bucket in self._buckets.values())
        return "window", self._window.size

    @property
    def _is_settled(self) -> bool:
        """Whether the episode's refusals are of calls that left at the present pace."""
        return self._episode_at >= self._settled_at

    def _mark(self, share: float, now: Seconds) -> None:
        """The lane slows down, for `share` of its calls were refused. What was answered tells the server's rate only
        where that is not the first time in a while: until then it also answers from what it had put by."""
        if now < self._slowed_at + 2 * LOOK_S:
            means, pace = self._pace()
            self._stray.slowed(means, WELL_BELOW * (1 - share) * pace)
        self._slowed_at = now

    def _is_slow_enough(self) -> bool:
        """Whether refusals at such a pace are none of the lane's doing."""
        return self._is_settled and self._stray.is_sound(self._refused, self._ended, *self._pace())

    def _is_too_many(self) -> bool:
        """Whether fewer calls in flight are called for."""
        if not self._is_settled:
            return self._refused > 1 and self._refused > MOST * self._ended
        return not self._is_slow_enough() and self._stray.ours(self._refused, self._ended) > MANY * self._ended

    def _blame(self) -> tuple[float, float]:
        """How many of the episode's refusals a slower lane (and, the second, one of shorter bursts) would not have met,
        as far as is known."""
        is_whole = self._pace() == ("factor", 1.0)  # the limit is used whole, and no more than the odd call refused
        are_few = is_whole and (self._refused < SOME or self._refused <= MANY * self._ended)
        is_slow_enough = self._is_slow_enough()
        if (is_slow_enough or are_few) and all(bucket.is_tight for bucket in self._buckets.values()):
            if self._stray.prove(self._refused, self._ended):
                self._window.resume()
                for bucket in self._buckets.values():
                    bucket.restore()
            return 0.0, 0.0
        self._stray.hear(self._refused, self._ended)
        ours = self._stray.ours(self._refused, self._ended)
        return 0.0 if is_slow_enough else ours, ours

    def _cut(self, now: Seconds) -> None:
        """Fewer calls in flight, and none before the time that the server named."""
        was_fine, before = self._window.was_fine, self._window.size
        self._window.refused(now)
        if not self._buckets and self._window.size < before:
            self._stray.slowed("window", was_fine)
            self._settled_at = now + AGO_S
        self._pause_until = max(self._pause_until, self._asked_until)

    def _probe(self, guess: float, past: Seconds, now: Seconds) -> None:
        """Try a little more: slowly round the rate that refusals began at last, quickly elsewhere, and more quickly
        still where there has been none for long."""
        is_near = abs(guess / self._refused_at - 1) < NEAR
        step = max(guess * PROBE, LEAST_PROBE) * (CAREFUL if is_near else 1.0)
        quiet = max(0.0, now - self._slowed_at - LONG_QUIET_S)
        self._guess = guess + step * (1 + quiet / QUIET_S)

    def _is_unclear(self, share: float, past: Seconds, now: Seconds) -> bool:
        """Whether to wait for more answers: a limit that headers told is not the one that refuses, and too few were
        answered to tell which is."""
        told = bool(self._learned) and not any(client.limits for client in self._alive(now))
        return told and share >= UNKNOWN and self._answered < TELLING and past < 10 * EPISODE_S

    def _slow_down(self, share: float, past: Seconds, now: Seconds) -> None:
        """Many refusals. Where no limit is known, or one that headers told is plainly not the one that refuses (a
        day's, or an account that others use too), what was answered beside them is the best guess of it."""
        named = any(client.limits for client in self._alive(now))
        known = {name for name in self._buckets if name != "requests" or self._guess is None}
        # A guess from noise would shrink for ever. Nor do answers that take longer than an episode tell a rate: a
        # server that takes so many calls at once would seem to take none; the window deals with those.
        tells = share >= UNKNOWN and self._answered >= TELLING
        if "tokens" in known and self.counting.explains_many_refusals(now):
            return
        if tells and (not known or not named):
            answered = self._answered / past * 60
            self._guess = max(1.0, GUESS * min(answered, self._guess or answered))
            self._slowed_at = now
        elif self._guess is not None:
            # No more than half at once: where nearly all was refused it may be an outage, and says little of the rate.
            self._refused_at = max(self._guess * max(0.5, 1 - share), self._answered / past * 60)
            self._mark(share, now)
            self._guess = max(1.0, min(self._guess, GUESS * self._refused_at))
        elif known:
            self._mark(share, now)
            for bucket in self._buckets.values():
                bucket.slow(SLOWER * (1 - share))

    def _slow_for_ramp(self, now: Seconds) -> None:
        """Traffic rose too fast. Once a minute at most: calls in flight come back refused too."""
        if now > self._ramp_until - RAMP_HOLD_S + 60.0:
            self._window.refused(now)
            self._window.hold(now, now + RAMP_HOLD_S)
            for bucket in self._buckets.values():
                bucket.slow(RAMP_SLOWER)
            self._ramp_until = now + RAMP_HOLD_S

    def _amounts(self, report: Report, now: Seconds) -> dict[str, float]:
        """The same share of every limit that is wanted, so that none lies unused behind the scarcest."""
        granted = {}
        for name, bucket in self._buckets.items():
            granted[name] = bucket.grant(report.worker, report.wanted.get(name, 0.0), now)
        shares = [granted[name] / wanted for name, wanted in report.wanted.items() if wanted > 0 and name in granted]
        least = min(shares, default=1.0)
        if least < 1.0:
            self._short_at = now
        for name, bucket in self._buckets.items():
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
        sizes = {n: min(report.call.get(n, 0.0), b.capacity) for n, b in self._buckets.items() if report.wanted.get(n)}
        sizes = {name: size for name, size in sizes.items() if size > 0}
        if not sizes:
            return {}, 0.0
        count = math.inf
        for name, size in sizes.items():
            bucket = self._buckets[name]
            most = max(bucket.largest, size) if bucket.is_scarce(asking) else math.inf
            count = min(count, (min(bucket.available(report.worker, report.call[name]), most) + 1e-9) // size)
        if count < 1:
            self._short_at = now
            waits = {n: self._buckets[n].wait(report.worker, size, report.call[n]) for n, size in sizes.items()}
            return {}, max(w if n == "requests" else min(w, REFUND_S) for n, w in waits.items())
        runs = {worker: self._clients[worker].run for worker in asking}
        if not self._calls.is_due(report.worker, runs, max(b.largest / b.per_minute for b in self._buckets.values())):
            return {}, 0.0
        amounts = {
            n: self._buckets[n].grant(report.worker, min(report.wanted[n], count * size), now, report.call[n])
            for n, size in sizes.items()
        }
        # Of a call larger than a limit but a part is granted; the rest is a debt.
        cost = max(amounts[n] / size * report.call[n] / self._buckets[n].per_minute for n, size in sizes.items())
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
        even = {worker: int(self._window.size * weight + 1e-9) for worker, weight in asking.items()}
        over = self._window.size - sum(even.values())
        self._places.took(report.worker, report.run, report.ended)
        runs = {worker: self._clients[worker].run for worker in asking}
        fair = even[report.worker] + int(over > 0 and self._places.is_among(report.worker, runs, over))
        others = sum(c.window for c in self._alive(now) if c is not me)
        granted = max(0, min(fair, self._window.size - others))
        me.window = max(report.in_flight, granted)
        return granted
