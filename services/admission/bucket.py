"""One limit a minute as a token bucket that many workers share fairly. The clock comes in with every question."""

from collections import deque
from collections.abc import Mapping

from services.admission.shares import Shares

Seconds = float

BURST_S = 0.8  # of the rate may gather while nobody asks: below the second's worth that the strictest server holds
SMALLEST_BURST_S = 0.2
START_S = 0.1  # what a fresh bucket holds: the first calls leave at once, and a minute's sum stays below the limit
SLOT_S = 0.05
HELD_S = 0.25  # for about so long a worker holds what it was granted
CROWD = 20  # calls a second
# Between two calls that must be so far apart, for one that arrives early is refused; more where that happens.
JITTER_S, MOST_JITTER_S = 0.02, 0.2
CALL_HALF_LIFE_S = 10.0  # of the size of the largest call: it shapes the bucket for everybody, whoever asks
SLOWEST = 0.05  # of the limit; below that a lane is not slowed any further


class Minute:
    """The sum of what was granted in the last 60 seconds, in slots: [slot, amount, last time]."""

    def __init__(self) -> None:
        self._slots: deque[list[float]] = deque()
        self.total = 0.0

    def add(self, amount: float, now: Seconds) -> None:
        slot = now // SLOT_S
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1:] = self._slots[-1][1] + amount, now
        else:
            self._slots.append([slot, amount, now])
        self.total += amount

    def forget(self, now: Seconds) -> None:
        oldest = (now - 60.0) // SLOT_S
        while self._slots and self._slots[0][0] < oldest:
            self.total -= self._slots.popleft()[1]

    def scale(self, by: float) -> None:
        for slot in self._slots:
            slot[1] *= by
        self.total *= by

    def since(self, then: Seconds) -> float:
        """Granted after `then`; a slot in which something was counts whole."""
        found = 0.0
        for _, amount, last in reversed(self._slots):
            if last <= then:
                break
            found += amount
        return found


class Bucket:
    """Refills at `per_minute` / 60 x `factor` a second, and never grants more than `per_minute` in any minute.

    The refill is split over the workers that ask, by their weights; what one leaves lying, the others may take. A
    demand larger than the bucket is let through once it is full and leaves a debt, so nothing waits for ever.
    """

    def __init__(self, per_minute: float, now: Seconds, whole: bool = False) -> None:
        self.per_minute = per_minute
        self.guessed = False  # a guess moves, so what was granted a minute ago says nothing about it
        self._whole = whole  # grants come in whole numbers: half a request is of no use to anybody
        self.factor = 1.0
        self.burst_s = BURST_S
        self.jitter_s = JITTER_S
        self.call = 0.0  # what the largest takes, lately
        self._held = Shares(max(1.0, per_minute / 60 * START_S))
        # Of what the minute's sum leaves, or whoever asks first would get it. Apart from what is held, for tokens that
        # come back go there, and tell how a server counts them.
        self._left = Shares(per_minute)
        self._at = now
        self._saw_at = now
        self._minute = Minute()

    @property
    def per_second(self) -> float:
        return self.per_minute / 60 * self.factor

    @property
    def largest(self) -> float:
        """What the largest call takes, as far as it is known."""
        return 1.0 if self._whole else self.call

    def saw(self, call: float, now: Seconds) -> None:
        """Somebody's next call takes so much."""
        self.call = max(call, self.call * 0.5 ** ((now - self._saw_at) / CALL_HALF_LIFE_S))
        self._saw_at = now

    def limit_to(self, per_minute: float) -> None:
        """Another limit from now on. What was granted under a larger one counts as if it had been granted under this
        one, or nobody could send until a minute has passed."""
        if per_minute < self.per_minute and not self.guessed:
            self._minute.scale(per_minute / self.per_minute)
        self.per_minute = per_minute

    @property
    def capacity(self) -> float:
        # Never less than two calls, or the refill of the time until somebody asks again would be lost.
        most, least = self.per_second * BURST_S, self.per_second * self.burst_s
        return max(1.0, min(most, max(least, 2 * self.largest)))

    def _apart(self, call: float) -> float:
        """What a call costs beyond itself where the strictest server holds it and no more: it must not arrive early."""
        return self.per_second * self.jitter_s if self.per_second * BURST_S <= call else 0.0

    @property
    def _full(self) -> float:
        # Above the price of a call: the factor may have risen since the bucket was filled.
        return self.capacity + 1.25 * self._apart(self.largest)

    @property
    def level(self) -> float:
        return self._held.total

    def is_scarce(self, asking: Mapping[str, float]) -> bool:
        """Whether it holds less than a call for each of those who ask, or less than two. Of whole ones less than two
        for each: their halves would become whole at one time, and leave together."""
        each = 2 if self._whole else 1
        return self.capacity * min([each / 2, *asking.values()]) < each * self.largest

    def refill(self, asking: Mapping[str, float], now: Seconds) -> None:
        """Bring the bucket to `now`. `asking` holds the weights, in all 1, of the workers that each have a share of
        it; what belongs to nobody is for whoever asks first."""
        gained, self._at = max(0.0, now - self._at) * self.per_second, max(now, self._at)
        self._held.add(gained, asking, self._full)
        self._held.cap(self._full)
        self._minute.forget(now)
        room = self.per_minute - self._minute.total
        self._left.add(max(0.0, room - self._left.total), asking, self._full)
        self._left.take_away(self._left.total - room)

    def _of_minute(self, worker: str) -> float:
        return float("inf") if self.guessed else self._left.of(worker)

    def available(self, worker: str, call: float = 1.0) -> float:
        """What `worker` could be granted for calls of this size; the bucket is at now."""
        found = max(0.0, min(self._held.of(worker) - self._apart(call), self._of_minute(worker)))
        return float(int(found + 1e-9)) if self._whole else found

    def grant(self, worker: str, wanted: float, now: Seconds, call: float = 1.0) -> float:
        """As much of `wanted` as there is for `worker`, for calls of this size; the bucket is at `now`."""
        given = min(max(0.0, wanted), self.available(worker, call))
        if given:
            self._held.take(worker, given + self._apart(call))
            self._left.take(worker, given)
            self._minute.add(given, now)
        return given

    def wait(self, worker: str, amount: float, call: float = 1.0) -> Seconds:
        """Until there is `amount` for `worker`'s call of this size, if nobody else takes it; the bucket is at now."""
        missing = amount - min(self._held.of(worker) - self._apart(call), self._of_minute(worker))
        return max(0.0, missing) / self.per_second

    def give_back(self, worker: str, amount: float, now: Seconds) -> None:
        """Return what a worker does not need; a negative amount is a debt that it made."""
        self._held.give(worker, amount)
        self._left.give(worker, amount)
        self._minute.add(-amount, now)

    def bound(self, remaining: float, ages: tuple[Seconds, Seconds], now: Seconds) -> float:
        """A server said that `remaining` was left: hold no more than that, less what was granted since. Whether it
        looked when the call came or when it answered, the two `ages`, nobody says: of both the more is believed, for
        a few requests too little are a large part of a small limit. Returns how far the server's figure, as of when
        the call came, lies above (or, negative, below) what the bucket held."""
        sent, answered = (remaining + self.per_second * age - self._minute.since(now - age) for age in ages)
        level = self.level
        gap = max(sent, answered) - level
        self._held.take_away(-gap)
        # What was granted shortly before may have left later: counted as such where single calls do not weigh.
        many = self.call * CROWD <= self.per_second
        before = (now - ages[0]) // HELD_S * HELD_S if many else now - ages[0]
        return remaining + self.per_second * ages[0] - self._minute.since(before) - level

    @property
    def is_tight(self) -> bool:
        """Whether bursts are as short as they get."""
        return (
            self.burst_s < 1.2 * SMALLEST_BURST_S and self.jitter_s > MOST_JITTER_S / 1.2
        )  # both recover all the time

    def restore(self) -> None:
        """What the server refused was neither for bursts nor for the rate."""
        self.burst_s, self.jitter_s, self.factor = BURST_S, JITTER_S, 1.0

    def tighten(self) -> None:
        """The server refused although the bucket held something: it allows shorter bursts than this one."""
        self.burst_s = max(SMALLEST_BURST_S, self.burst_s / 2)
        self.jitter_s = min(MOST_JITTER_S, self.jitter_s * 2)

    def slow(self, by: float) -> None:
        """Use a smaller share of the limit: somebody else uses it too, or it is lower than was said."""
        self.factor = max(SLOWEST, self.factor * by)

    def recover(self, by: float, haste: float = 1.0) -> None:
        """Go back towards the whole limit, `haste` times as fast, and towards the whole burst."""
        self.factor = min(1.0, self.factor + haste * by)
        self.burst_s = min(BURST_S, self.burst_s * (1 + by))
        self.jitter_s = max(JITTER_S, self.jitter_s * (1 - by))
