"""Calls in flight where the limit is not known: slow start, then AIMD, one cut an episode."""

Seconds = float

START, FLOOR, CEILING = 16, 1, 2048
CUT = 0.7
GROWTH = 0.02  # of the window a round, at least one call
LOOK_S = 2.0  # after a cut, without growth, to see whether it helped
EPISODE_S = 1.0  # answers that left before a cut still come back refused; they are one episode
WELL_BELOW = 0.85  # of a size that was come to in small steps
BUSY = 0.8  # of the window in use: growing an idle one teaches nothing


class Window:
    """Doubles a round until the first refusal, then grows by a fiftieth a round; shrinks on a refusal.

    A round is a window's worth of answers. `fixed` keeps it where it is.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._size = float(fixed if fixed is not None else START)
        self._fixed = fixed is not None
        self._slow_start = True
        self._answers = 0
        self._cut_at: Seconds = float("-inf")
        self._hold_until: Seconds = float("-inf")
        self._ceiling = float(CEILING)

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def was_fine(self) -> float:
        """A size that is known to be taken, should the present one be refused."""
        return self._size * (0.5 if self._slow_start else WELL_BELOW)

    def answered(self, count: int, in_flight: int, now: Seconds) -> None:
        """`count` calls succeeded while up to `in_flight` were out."""
        if self._fixed or in_flight < BUSY * self.size or now - self._cut_at < LOOK_S:
            return
        ceiling = self._ceiling if now < self._hold_until else CEILING
        self._answers += count
        while self._answers >= self._size and self._size < ceiling:
            self._answers -= int(self._size)
            step = self._size if self._slow_start else max(1.0, self._size * GROWTH)
            self._size = min(ceiling, self._size + step)
        self._answers = min(self._answers, int(self._size))

    def refused(self, now: Seconds) -> None:
        """The teacher refused a call for its rate or load."""
        self._slow_start = False
        if not self._fixed and now - self._cut_at > EPISODE_S:
            self._size = max(FLOOR, self._size * CUT)
            self._cut_at, self._answers = now, 0

    def resume(self) -> None:
        """Refusals that a cut did not help against say nothing of the size: feel for it as at first."""
        self._slow_start = True

    def open(self) -> None:
        """Limits a minute are known and pace the calls: there is nothing to feel for, unless calls were refused."""
        if self._slow_start and not self._fixed:
            self._size = float(CEILING)

    def release(self) -> None:
        """There was no reason to hold it."""
        self._hold_until = float("-inf")

    def hold(self, now: Seconds, until: Seconds, least: int = START) -> None:
        """Do not grow beyond the present size, or `least`, before `until`; what is lost meanwhile may be won back."""
        self._ceiling = max(float(least), self._size if now >= self._hold_until else min(self._ceiling, self._size))
        self._hold_until = max(self._hold_until, until)
