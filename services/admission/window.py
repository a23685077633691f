"""How many calls one worker keeps in flight where the limit is not known: AIMD, one cut an episode."""

Seconds = float

START, FLOOR, CEILING = 16, 1, 512
CUT = 0.7
EPISODE_S = 1.0  # answers that left before a cut still come back refused; they are one episode


class Window:
    """Grows by one call a round while it is full, shrinks on a refusal. `fixed` keeps it where it is."""

    def __init__(self, fixed: int | None = None) -> None:
        self._size = float(fixed if fixed is not None else START)
        self._fixed = fixed is not None
        self._cut_at: Seconds = float("-inf")

    @property
    def size(self) -> int:
        return int(self._size)

    def answered(self, in_flight: int) -> None:
        """A call succeeded while `in_flight` were out; growth needs at least four fifths of the window in use."""
        if not self._fixed and in_flight >= 0.8 * self._size:
            self._size = min(CEILING, self._size + 1.0 / self._size)

    def refused(self, now: Seconds) -> None:
        """The teacher refused a call for its rate or load."""
        if not self._fixed and now - self._cut_at > EPISODE_S:
            self._size = max(FLOOR, self._size * CUT)
            self._cut_at = now
