"""One lane's rates and the run's money behind leases, so that limits hold for all workers together.

`Admission` is plain; `Governor` is the actor round it. A worker asks for a lease on the calls that it is about to
send, many in one request, and settles the ones that came back in the same request.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.lane import Limits
from services.admission.bucket import Bucket
from services.admission.purse import Purse

BUDGET_POLL_S = 0.1  # how soon a worker asks again while others' reservations may still be released


class Demand(NamedTuple):
    """The most that one call can take: tokens in and out, micro-dollars."""

    input_tokens: int
    output_tokens: int
    cost: int


class Settled(NamedTuple):
    """What calls that ended had reserved, what they cost, and output tokens that were charged but not used."""

    reserved: int = 0
    cost: int = 0
    unused_output: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The first `calls` demands may be sent now. With none, ask again after `wait_s`, or stop: `exhausted`."""

    calls: int
    wait_s: float = 0.0
    exhausted: bool = False


class Admission:
    """Decides leases. The clock comes in with every question."""

    def __init__(self, lanes: Sequence[Limits], purse: Purse, now: float) -> None:
        self.purse = purse
        self._settled_cost: dict[str, int] = defaultdict(int)
        self._lanes: list[dict[str, Bucket]] = []
        for limits in lanes:
            rates = {
                "requests": limits.rpm,
                "tokens": limits.tpm,
                "input": limits.input_tpm,
                "output": limits.output_tpm,
            }
            self._lanes.append({name: Bucket(rate, now) for name, rate in rates.items() if rate is not None})

    @staticmethod
    def _amounts(demand: Demand) -> dict[str, int]:
        return {
            "requests": 1,
            "tokens": demand.input_tokens + demand.output_tokens,
            "input": demand.input_tokens,
            "output": demand.output_tokens,
        }

    def settle(self, worker: str, lane: int, settled: Settled, now: float) -> None:
        self.purse.settle(worker, settled.reserved, settled.cost)
        self._settled_cost[worker] += settled.cost
        # OpenAI keeps max_tokens charged whatever was produced; only a separate output limit counts live tokens.
        if (bucket := self._lanes[lane].get("output")) and settled.unused_output:
            bucket.give_back(settled.unused_output, now)

    def lease(self, worker: str, lane: int, demands: Sequence[Demand], now: float) -> Lease:
        """Grant a prefix of `demands`."""
        buckets = self._lanes[lane]
        granted = 0
        for demand in demands:
            amounts = self._amounts(demand)
            wait = max((b.wait(amounts[name], now) for name, b in buckets.items()), default=0.0)
            if wait > 0:
                return Lease(granted, wait_s=0.0 if granted else wait)
            if not self.purse.covers(demand.cost):
                # While calls are out, what they do not use may still come back.
                spare = self.purse.reserved > 0
                return Lease(granted, BUDGET_POLL_S, exhausted=not granted and not spare)
            for name, bucket in buckets.items():
                bucket.take(amounts[name], now)
            self.purse.reserve(worker, demand.cost)
            granted += 1
        return Lease(granted)

    def bury(self, worker: str, cost: int) -> None:
        """A worker died; `cost` is all that its journal segment says it spent."""
        self.purse.forget(worker, max(0, cost - self._settled_cost.pop(worker, 0)))


class Governor:
    """The actor: `Admission` with the process's monotonic clock."""

    def __init__(self, lanes: Sequence[Limits], limit: int | None, spent: int) -> None:
        self._admission = Admission(lanes, Purse(limit, spent), time.monotonic())

    async def lease(self, worker: str, lane: int, demands: Sequence[Demand], settled: Settled) -> Lease:
        now = time.monotonic()
        self._admission.settle(worker, lane, settled, now)
        return self._admission.lease(worker, lane, demands, now)

    async def bury(self, worker: str, cost: int) -> None:
        self._admission.bury(worker, cost)
