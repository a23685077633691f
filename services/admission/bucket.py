"""One limit a minute as a token bucket that many workers share fairly. The clock comes in with every question."""

from collections import deque
from collections.abc import Mapping

Seconds = float

BURST_S = 0.8  # of the rate may gather while nobody asks: below the second's worth that the strictest server holds
SMALLEST_BURST_S = 0.1
START_S = 0.1  # what a fresh bucket holds: the first calls leave at once, and a minute's sum stays below the limit
SLOT_S = 0.25
SLOWEST = 0.05  # of the limit; below that a lane is not slowed any further


class Minute:
    """The sum of what was granted in the last 60 seconds, in slots of a quarter second."""

    def __init__(self) -> None:
        self._slots: deque[list[float]] = deque()
        self.total = 0.0

    def add(self, amount: float, now: Seconds) -> None:
        slot = now // SLOT_S
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self.total += amount

    def forget(self, now: Seconds) -> None:
        oldest = (now - 60.0) // SLOT_S
        while self._slots and self._slots[0][0] < oldest:
            self.total -= self._slots.popleft()[1]

    def since(self, then: Seconds) -> float:
        """Granted from the slot that holds `then` on."""
        first, found = then // SLOT_S, 0.0
        for slot, amount in reversed(self._slots):
            if slot < first:
                break
            found += amount
        return found


class Bucket:
    """Refills at `per_minute` / 60 x `factor` a second, and never grants more than `per_minute` in any minute.

    The refill is split over the workers that ask, by their weights; what one leaves lying, the others may take. A
    demand larger than the bucket is let through once it is full and leaves a debt, so nothing waits for ever. Where
    the bucket holds less than one for each, they take turns.
    """

    def __init__(self, per_minute: float, now: Seconds, whole: bool = False) -> None:
        self.per_minute = per_minute
        self.guessed = False  # a guess moves, so what was granted a minute ago says nothing about it
        self._whole = whole  # grants come in whole numbers: half a request is of no use to anybody
        self.factor = 1.0
        self.burst_s = BURST_S
        self._credit: dict[str, float] = {}
        self._few = False
        self._served: dict[str, float] = {}  # by worker and its weight, while there is less than one for each
        self._spare = max(1.0, per_minute / 60 * START_S)
        self._at = now
        self._minute = Minute()

    @property
    def per_second(self) -> float:
        return self.per_minute / 60 * self.factor

    @property
    def capacity(self) -> float:
        # Room for half a request more than one: a worker that asks a moment late must not lose the time.
        return max(1.0 + 0.5 * self._whole * self.burst_s / BURST_S, self.per_second * self.burst_s)

    @property
    def level(self) -> float:
        return self._spare + sum(self._credit.values())

    def refill(self, asking: Mapping[str, float], now: Seconds) -> None:
        """Bring the bucket to `now`. `asking` holds the weights, in all 1, of the workers that want more."""
        gained, self._at = max(0.0, now - self._at) * self.per_second, max(now, self._at)
        for worker in [worker for worker in self._credit if worker not in asking]:
            self._spare += self._credit.pop(worker)
        few = self._few = bool(self._whole and asking and self.capacity * min(asking.values()) < 1.0)
        if few:  # what each had put by when there was more is for whoever's turn it is
            self._spare += sum(self._credit.values())
            self._credit.clear()
        least = min((self._served.get(w, 0.0) for w in asking if w in self._served), default=0.0)
        self._served = {w: self._served.get(w, least) for w in asking}
        for worker, weight in ({} if few else asking).items():
            held, share = self._credit.get(worker, 0.0) + gained * weight, self.capacity * weight
            self._credit[worker] = min(held, share)
            self._spare += max(0.0, held - share)
        if few or not asking:
            self._spare += gained
        self._spare = min(self._spare, max(0.0, self.capacity - sum(self._credit.values())))
        self._minute.forget(now)

    def grant(self, worker: str, wanted: float, now: Seconds) -> float:
        """As much of `wanted` as there is for `worker`; the bucket is at `now`."""
        own = self._credit.get(worker, 0.0)
        room = float("inf") if self.guessed else self.per_minute - self._minute.total
        given = max(0.0, min(wanted, own + self._spare, room))
        if self._whole:
            given = float(int(given + 1e-9))
        if self._few and given:
            # Turn by turn: whoever has had the least for its weight.
            if self._served.get(worker, 0.0) > min(self._served.values(), default=0.0):
                return 0.0
            given = 1.0
            self._served[worker] = self._served.get(worker, 0.0) + 1.0
        if given:
            from_own = min(given, max(0.0, own))
            self._credit[worker] = own - from_own
            self._spare -= given - from_own
            self._minute.add(given, now)
        return given

    def give_back(self, worker: str, amount: float, now: Seconds) -> None:
        """Return what a worker does not need; a negative amount is a debt that it made."""
        self._credit[worker] = self._credit.get(worker, 0.0) + amount
        self._minute.add(-amount, now)

    def bound(self, remaining: float, age: Seconds, now: Seconds) -> float:
        """A server said `age` seconds ago that `remaining` was left: hold no more than that, less what was granted
        since. Returns how far the server's figure lies above (or, negative, below) what the bucket held."""
        theirs = remaining + self.per_second * age - self._minute.since(now - age)
        gap = theirs - self.level
        if gap < 0:
            cut = min(-gap, max(0.0, self.level))
            from_spare = min(cut, max(0.0, self._spare))
            self._spare -= from_spare
            held = sum(max(0.0, c) for c in self._credit.values())
            for worker, credit in self._credit.items():
                if credit > 0:
                    self._credit[worker] = credit - (cut - from_spare) * credit / held
        return gap

    def tighten(self) -> None:
        """The server refused although the bucket held something: it allows shorter bursts than this one."""
        self.burst_s = max(SMALLEST_BURST_S, self.burst_s / 2)

    def slow(self, by: float) -> None:
        """Use a smaller share of the limit: somebody else uses it too, or it is lower than was said."""
        self.factor = max(SLOWEST, self.factor * by)

    def recover(self, by: float, haste: float = 1.0) -> None:
        """Go back towards the whole limit, `haste` times as fast, and towards the whole burst."""
        self.factor = min(1.0, self.factor + haste * by)
        self.burst_s = min(BURST_S, self.burst_s * (1 + by))
