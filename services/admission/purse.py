"""The run's money, in micro-dollars: reserved before a call is sent, settled when its answer is on disk."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Purse:
    """Never lets spent + reserved exceed the limit. `limit` None: no cap, only the count."""

    limit: int | None
    spent: int = 0
    _reserved: dict[str, int] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        return sum(self._reserved.values())

    def covers(self, amount: int) -> bool:
        return self.limit is None or self.spent + self.reserved + amount <= self.limit

    def reserve(self, worker: str, amount: int) -> None:
        self._reserved[worker] = self._reserved.get(worker, 0) + amount

    def settle(self, worker: str, reserved: int, cost: int) -> None:
        """Calls reserved at `reserved` in all cost `cost` in all."""
        self._reserved[worker] = self._reserved.get(worker, 0) - reserved
        self.spent += cost

    def forget(self, worker: str, unsettled: int) -> None:
        """A worker died. `unsettled` is what its journal segment says beyond what it settled here."""
        self._reserved.pop(worker, None)
        self.spent += unsettled
