"""A token bucket with an injected clock."""

Seconds = float


class Bucket:
    """Refills at `per_minute` / 60 a second and holds at most one second's worth.

    A demand larger than the bucket is let through once it is full and leaves a debt that later demands wait for, so
    the average rate holds and nothing waits for ever.
    """

    def __init__(self, per_minute: float, now: Seconds) -> None:
        self.per_second = per_minute / 60.0
        self.capacity = max(self.per_second, 1.0)
        self._level = self.capacity
        self._at = now

    def _refill(self, now: Seconds) -> None:
        self._level = min(self.capacity, self._level + (now - self._at) * self.per_second)
        self._at = now

    def wait(self, amount: float, now: Seconds) -> Seconds:
        """Seconds until `amount` may be taken; 0 if it may be now."""
        self._refill(now)
        short = min(amount, self.capacity) - self._level
        # A nanosecond of slack, or rounding asks for a wait that is too short to change the level.
        return max(0.0, short / self.per_second) if short > 1e-9 else 0.0

    def take(self, amount: float, now: Seconds) -> None:
        self._refill(now)
        self._level -= amount

    def give_back(self, amount: float, now: Seconds) -> None:
        """Return what a settled call did not use."""
        self._refill(now)
        self._level = min(self.capacity, self._level + amount)
