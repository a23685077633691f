"""An amount that is split over the workers that ask for it."""

from collections.abc import Mapping


class Shares:
    """What each worker may take, and what is anybody's: that is for whoever asks first."""

    def __init__(self, spare: float) -> None:
        self._of: dict[str, float] = {}  # below 0 is a debt
        self._spare = spare

    @property
    def total(self) -> float:
        return self._spare + sum(self._of.values())

    def of(self, worker: str) -> float:
        """What `worker` could take."""
        return self._of.get(worker, 0.0) + self._spare

    def add(self, gained: float, asking: Mapping[str, float], most: float) -> None:
        """Split `gained` by the weights, in all 1, of the workers in `asking`. What one of them leaves lying beyond
        its part of `most` is anybody's, and so is what belongs to those who do not ask."""
        for worker in [worker for worker in self._of if worker not in asking]:
            self._spare += self._of.pop(worker)
        for worker, weight in asking.items():
            held, share = self._of.get(worker, 0.0) + gained * weight, most * weight
            self._of[worker] = min(held, share)
            self._spare += max(0.0, held - share)
        if not asking:
            self._spare += gained

    def cap(self, most: float) -> None:
        """Let go of what is anybody's where all together is more than `most`."""
        self._spare = min(self._spare, max(0.0, most - sum(self._of.values())))

    def take(self, worker: str, amount: float) -> None:
        """For `worker`: of its own first."""
        own = self._of.get(worker, 0.0)
        from_own = min(amount, max(0.0, own))
        self._of[worker] = own - from_own
        self._spare -= amount - from_own

    def give(self, worker: str, amount: float) -> None:
        """To `worker`; a negative amount is a debt that it made."""
        self._of[worker] = self._of.get(worker, 0.0) + amount

    def take_away(self, amount: float) -> None:
        """Hold so much less: of what is anybody's first, then of all alike."""
        amount = min(amount, max(0.0, self.total))
        if amount <= 0:
            return
        from_spare = min(amount, max(0.0, self._spare))
        self._spare -= from_spare
        held = sum(max(0.0, own) for own in self._of.values())
        for worker, own in self._of.items():
            if own > 0:
                self._of[worker] = own - (amount - from_spare) * own / held
