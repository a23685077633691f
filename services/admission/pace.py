"""How fast an account's calls may leave, learned from what the server says and from what came of calls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.admission.bucket import Bucket
from services.admission.charging import Counting
from services.admission.lease import Report
from services.admission.stray import MOST, SOME, Stray
from services.admission.window import Window

Seconds = float

EPISODE_S = 1.0
AGO_S = 0.5  # refusals of calls that left before a lane slowed down come back, and are reported, for so long
ENOUGH = 20  # calls that an episode needs to be judged by, unless it lasts ten times as long
SOUND = 5  # where none was refused, at a pace that is known to be low
MANY = 0.02  # refused of sent: beyond jitter
PLENTY = 200  # calls that tell a share of so few
AGAIN = 0.03  # over some episodes, though few in each
UNKNOWN = 0.3  # refused of sent: a limit that nobody named
LOADED, OVERLOAD = 0.1, 0.2  # overloaded of sent, not the odd error: calls in flight grow no more, or are cut
FLOOD = 0.1  # refused of sent: something is wrong with what is believed of the limits
SLOWER, RAMP_SLOWER = 0.95, 0.75
RECOVERY = 0.005  # of the limit a second, and as much again for every `QUIET_S` without many refusals
QUIET_S, LONG_QUIET_S = 10.0, 30.0
LOOK_S, LONG_LOOK_S = 6.0, 15.0  # after a lane slowed down, to see whether it helped
WELL_BELOW, JUST_ABOVE = 0.95, 1.02  # of a rate that was answered; of one that was lowered to
GUESS = 0.95  # of the rate that was answered while other calls were refused
PROBE = 0.03  # more of it is tried next, each second
CLIMB, LONGEST_CLIMB_S = 0.1, 4.0  # as long as it is but a lower bound
CAREFUL, NEAR = 0.1, 0.03  # of that step, so near the rate that refusals began at last
BACK = 0.01  # less of it, after the odd refusal
TELLING, FEW = 10, 3  # answers of an episode that tell a rate, and where nothing else can
FAR, FAR_OFF = 50, 0.8  # refused, and of sent: the limit is another one
LEAST_PROBE = 6.0  # requests a minute
RAMP_HOLD_S = 900.0  # OpenAI: at most half as much again in 15 minutes (rate limits guide, read 2026-11-23)
RAMP_AGAIN_S = 60.0  # after which a lane may be slowed down once more


class Wish(NamedTuple):
    """What one live worker's spec says, and how many calls it has in flight: it may have, and it had at the most."""

    limits: Mapping[str, float]
    concurrency: int | None
    window: int
    peak: int


@dataclass(slots=True)
class Episode:
    """What came of calls from `at` on, for about a second."""

    at: Seconds
    ended: int = 0
    answered: int = 0
    refused: int = 0
    overloaded: int = 0
    ramped: int = 0

    def add(self, report: Report) -> None:
        self.ended += report.ended
        self.answered += report.answered
        self.refused += report.refused
        self.overloaded += report.overloaded
        self.ramped += report.ramp


@dataclass(slots=True)
class Pace:
    """Buckets for the limits that are known, a window for the rest."""

    started: Seconds
    counting: Counting = field(default_factory=Counting)
    buckets: dict[str, Bucket] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    pause_until: Seconds = -math.inf
    _pause_s: Seconds = 0.0  # how long the last pause was to be
    short_at: Seconds = -math.inf  # when calls last waited for a limit
    _cap: int | None = None
    _told: dict[str, float] = field(default_factory=dict)  # limits, by headers
    _named: bool = False  # some, by specs
    _episode: Episode = field(init=False)
    _stray: Stray = field(default_factory=Stray)
    _ramp_stray: Stray = field(default_factory=Stray)
    _asked_until: Seconds = -math.inf  # what Retry-After said last, whichever worker heard it
    _guess: float | None = None  # requests a minute, where nobody says
    _is_low: bool = False  # it was made while the server wanted nothing for some of the time
    _refused_at: float = math.inf  # the rate that refusals began at last
    _ramp_until: Seconds = -math.inf
    _recovered_at: Seconds = field(init=False)
    _slowed_at: Seconds = field(init=False)
    _settled_at: Seconds = field(init=False)
    _unaware: int = 0  # calls that had left before a limit, or how it counts, was known: their refusals tell nothing

    def __post_init__(self) -> None:
        self._episode = Episode(self.started)
        self._recovered_at = self._settled_at = self.started
        self._slowed_at = self.started - 2 * LOOK_S

    def follow(self, crew: Sequence[Wish], report: Report, now: Seconds) -> None:
        """The smallest of what the live specs say and the server's headers teach, `report` among them: what it tells of
        refusals is of calls that had left before."""
        self._told.update(report.hint.limits if report.hint else {})
        limits: dict[str, float] = dict(self._told)
        if self._guess is not None:
            limits["requests"] = min(self._guess, limits.get("requests", self._guess))
        for wish in crew:
            for name, value in wish.limits.items():
                limits[name] = min(value, limits.get(name, value))
        self._named = any(wish.limits for wish in crew)
        if self._told and not self.buckets:
            self._unaware = report.ended + sum(wish.window for wish in crew)
            self._begin_episode(now)
        for name, value in limits.items():
            if name not in self.buckets:
                self.buckets[name] = Bucket(value, now, whole=name == "requests")
            self.buckets[name].limit_to(value)
            self.buckets[name].guessed = name == "requests" and value == self._guess
        for name in [name for name in self.buckets if name not in limits]:
            del self.buckets[name]
        if self.buckets:
            self.window.open()
        cap = min((wish.concurrency for wish in crew if wish.concurrency is not None), default=None)
        if cap != self._cap:
            self._cap, self.window = cap, Window(cap)

    def hear(self, report: Report, now: Seconds) -> None:
        """Take in the upper bound of what is left that the server's headers give."""
        for name, remaining in (report.hint.remaining if report.hint else {}).items():
            if bucket := self.buckets.get(name):
                gap = bucket.bound(remaining, report.hint_ages, now)
                if name == "tokens":
                    is_short = now - self.short_at < EPISODE_S
                    self.counting.hear(gap, report.call.get(name, 0.0), bucket, is_short, now)

    def learn(self, report: Report, crew: Sequence[Wish], now: Seconds) -> None:
        """Adapt to refusals: shorter bursts, then a smaller share of the limit; the window where none is known."""
        peak = sum(wish.peak for wish in crew)
        if self._unaware > 0:
            self._unaware -= report.ended
        elif now >= self._episode.at:
            self._episode.add(report)
        self._count_tokens(report, peak, now)
        self.window.answered(report.answered, peak, now)
        self._asked_until = max(self._asked_until, now + report.retry_after)
        if report.overloaded and self._episode.overloaded > max(1, LOADED * self._episode.ended):
            self.window.hold(now, now + EPISODE_S)
        if report.ramp and not self._is_sound(self._ramp_stray, self._episode.ramped):
            self._slow_for_ramp(now)
        if report.refused and not self.buckets and self._is_too_many():
            self._cut(now)
        past = now - self._episode.at
        enough = SOUND if self._is_low and not self._episode.refused else ENOUGH
        if past >= EPISODE_S and (self._episode.ended >= enough or past >= 10 * EPISODE_S):
            self._judge(past, now)
        if now >= self._ramp_until and not self._is_looking(now):
            for bucket in self.buckets.values():
                bucket.recover(RECOVERY * min(1.0, now - self._recovered_at), 1 + (now - self._slowed_at) / QUIET_S)
        self._recovered_at = now

    def _count_tokens(self, report: Report, peak: int, now: Seconds) -> None:
        bucket = self.buckets.get("tokens")
        if bucket is None:
            return
        call = report.call.get("tokens", bucket.call)
        stray = self._stray.share * report.ended
        if self.counting.count(report.unused, report.refused, stray, call, bucket, not self._told, now):
            self._begin_episode(now)
            self._unaware = peak

    def _judge(self, past: Seconds, now: Seconds) -> None:
        """An episode is over."""
        episode = self._episode
        if episode.overloaded > OVERLOAD * episode.ended:
            self._cut(now)  # beyond the odd error: too many calls at once
        if self._is_unclear(past):
            self._cut(now)
            return
        self._judge_ramp(now)
        share, refused = self._blame(now)
        believed = self.counting.charging
        if share > MANY:
            self._slow_down(share, past, now)
        elif self._guess is not None:
            self._probe(self._guess, bool(refused), past, now)
        # One cause at a time: where tokens turned out to be counted otherwise, bursts were not the matter.
        if refused and self.buckets and self.counting.charging is believed:
            for bucket in self.buckets.values():
                bucket.tighten()
            if share > FLOOD and episode.ended >= ENOUGH:
                self._cut(now)
        self._begin_episode(now + (AGO_S if share > MANY else 0.0))

    def _begin_episode(self, now: Seconds) -> None:
        self._episode = Episode(now)

    def _standing(self) -> tuple[str, float]:
        """(what holds the pace, where it stands)."""
        if self._guess is not None:
            return "guess", self._guess
        if self.buckets:
            return "factor", min(bucket.factor for bucket in self.buckets.values())
        return "window", self.window.size

    @property
    def _is_settled(self) -> bool:
        """Whether the episode's refusals are of calls that left at the present pace."""
        return self._episode.at >= self._settled_at

    def _is_looking(self, now: Seconds) -> bool:
        """Whether the lane stays where it slowed down to, to see whether that helped."""
        return now < self._slowed_at + (LONG_LOOK_S if self._stray.is_looking else LOOK_S)

    def _is_sound(self, stray: Stray, refused: int) -> bool:
        """Whether refusals at such a pace are none of the lane's doing."""
        return self._is_settled and stray.is_sound(refused, self._episode.ended, *self._standing())

    def _is_too_many(self) -> bool:
        """Whether fewer calls in flight are called for."""
        refused, ended = self._episode.refused, self._episode.ended
        if not self._is_settled:
            return refused > 1 and refused > MOST * ended
        return not self._is_sound(self._stray, refused) and self._stray.ours(refused, ended) > MANY * ended

    def _blame(self, now: Seconds) -> tuple[float, float]:
        """(the share of calls that a slower lane would have had answered, how many refusals shorter bursts might have
        spared), as far as is known."""
        refused, ended, stray = self._episode.refused, self._episode.ended, self._stray
        is_sound = self._is_sound(stray, refused)
        # The limit is used whole, and no more than the odd call refused.
        are_few = self._standing() == ("factor", 1.0) and stray.lately.ended >= PLENTY and stray.lately.value <= MANY
        if (is_sound or are_few) and all(bucket.is_tight for bucket in self.buckets.values()):
            if stray.prove(refused, ended) if is_sound else stray.prove_lately(refused, ended):
                self._restore(now)
            return 0.0, 0.0
        stray.hear(refused, ended)
        ours = stray.ours(refused, ended)
        share = ours / max(1, ended) if ours >= SOME else 0.0  # one or two are chance, unless they come again
        if self._guess is None or stray.share:
            again = stray.ours_lately
            share = max(share, again if again > AGAIN else 0.0)
        return 0.0 if is_sound else share, ours

    def _restore(self, now: Seconds) -> None:
        """The lane slowed down for nothing, unless it is held for a ramp, too."""
        if now < self._ramp_until:
            return
        self.window.resume()
        for bucket in self.buckets.values():
            bucket.restore()

    def _mark(self, share: float, now: Seconds) -> float:
        """The lane slows down, for `share` of its calls were refused. What was answered tells the server's rate only
        where that is not the first time in a while: until then it also answers from what it had put by."""
        means, pace = self._standing()
        is_first = now >= self._slowed_at + 2 * LOOK_S
        error = min(0.1, 2 * self._stray.lately.error)
        by = SLOWER * (1 - share) if is_first else WELL_BELOW * (1 - share - error)
        self._stray.slowed(means, 0.0 if is_first else JUST_ABOVE * by * pace)
        self._slowed_at = now
        return by

    def _cut(self, now: Seconds) -> None:
        """Fewer calls in flight, and none before the time that the server named."""
        was_fine, before = self.window.was_fine, self.window.size
        self.window.refused(now)
        if not self.buckets and self.window.size < before:
            self._stray.slowed("window", was_fine)
            self._settled_at = now + AGO_S
        self.pause_until, self._pause_s = max(self.pause_until, self._asked_until), max(0.0, self._asked_until - now)

    def _probe(self, guess: float, refused: bool, past: Seconds, now: Seconds) -> None:
        """Try a little more: slowly round the rate that refusals began at last, quickly elsewhere, and more quickly
        still where there has been none for long."""
        is_near = abs(guess / self._refused_at - 1) < NEAR
        self._is_low = self._is_low and not refused
        if refused and (is_near or guess > self._refused_at):
            self._guess = guess * (1 - BACK)
            return
        # A guess that nobody comes up against says nothing, and would grow without end.
        is_looking = self._is_looking(now) and not self._is_low
        if is_looking or now < self._ramp_until or now - self.short_at > 2 * EPISODE_S:
            return
        more = CLIMB * min(past, LONGEST_CLIMB_S) if self._is_low else PROBE
        step = max(guess * more, LEAST_PROBE) * (CAREFUL if is_near else 1.0)
        quiet = max(0.0, now - self._slowed_at - LONG_QUIET_S)
        self._guess = guess + step * (1 + quiet / QUIET_S)

    def _is_unclear(self, past: Seconds) -> bool:
        """Whether to wait for more answers: a limit that headers told is not the one that refuses, and too few were
        answered to tell which is."""
        episode, told = self._episode, bool(self._told) and not self._named
        if episode.refused < max(SOME, UNKNOWN * episode.ended) or episode.answered >= self._telling:
            return False
        is_early = past < 10 * EPISODE_S or (episode.answered < FEW and past < 60 * EPISODE_S)
        return is_early and (told or self._is_at_its_floor)

    @property
    def _telling(self) -> int:
        """Answers of an episode that tell the server's rate: few do where it is far below what is believed."""
        is_far = self._episode.refused >= FAR and self._episode.refused > FAR_OFF * self._episode.ended
        return FEW if self._is_at_its_floor or is_far else TELLING

    @property
    def _is_at_its_floor(self) -> bool:
        """Whether one call at a time is too many, so that it is no matter of how many are in flight."""
        return not self.buckets and self.window.size <= 1

    def _slow_down(self, share: float, past: Seconds, now: Seconds) -> None:
        """Many refusals. Where no limit is known, or one that headers told is plainly not the one that refuses (a
        day's, or an account that others use too), what was answered beside them is the best guess of it."""
        known = {name for name in self.buckets if name != "requests" or self._guess is None}
        wait = max(0.0, self.pause_until - now)
        answered = self._episode.answered / (past + wait) * 60
        # A guess from noise would shrink for ever. Nor do answers that take longer than an episode tell a rate: a
        # server that takes so many calls at once would seem to take none; the window deals with those.
        was_paused = self.pause_until > self._episode.at and self._pause_s >= EPISODE_S
        is_told_to_wait = self._guess is None and was_paused
        tells = (share >= UNKNOWN or is_told_to_wait) and self._episode.answered >= self._telling
        if "tokens" in known and self.counting.explains_many_refusals(now):
            return
        if tells and not (known and self._named):
            self._guess = max(1.0, GUESS * min(answered, self._guess or answered))
            self._slowed_at, self._is_low = now, was_paused
        elif self._guess is not None:
            # No more than half at once: where nearly all was refused it may be an outage, and says little of the rate.
            self._refused_at, self._is_low = max(self._guess * max(0.5, 1 - share), answered), False
            by = self._mark(share, now)
            self._guess = max(1.0, min(self._guess * max(0.5, by), GUESS * self._refused_at))
        elif known:
            by = self._mark(share, now)
            for bucket in self.buckets.values():
                bucket.slow(by)

    def _slow_for_ramp(self, now: Seconds) -> None:
        """Traffic rose too fast. Once a minute at most: calls in flight come back refused too."""
        if now <= self._ramp_until - RAMP_HOLD_S + RAMP_AGAIN_S:
            return
        if not self._ramp_stray.ours(self._episode.ramped, self._episode.ended):
            return
        self.window.refused(now)
        self.window.hold(now, now + RAMP_HOLD_S, least=1)
        for bucket in self.buckets.values():
            bucket.slow(RAMP_SLOWER)
        self._ramp_until, self._settled_at = now + RAMP_HOLD_S, now + AGO_S
        self._ramp_stray.slowed(*self._standing())

    def _judge_ramp(self, now: Seconds) -> None:
        """Whether refusals for a ramp go on where it was just made a quarter lower: then it is none."""
        ramped, ended = self._episode.ramped, self._episode.ended
        if not self._is_sound(self._ramp_stray, ramped):
            self._ramp_stray.hear(ramped, ended)
            return
        self._ramp_stray.prove(ramped, ended)
        if ramped and self._ramp_stray.share and now < self._ramp_until:
            self._ramp_until = now
            self.window.release()
            self._restore(now)
