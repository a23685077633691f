"""The actor round `Pool`: one for each account on a cluster, whatever the number of runs.

It is detached, so it outlives the run that started it, and ends by itself once nobody has asked for a while. After a
crash Ray starts it again; it then hands nothing out for one lease, until what was handed out before has run out.
"""

import asyncio
import time
from typing import Any

from services.admission.charging import Charging, Counting
from services.admission.lease import LEASE_S, Grant, Report
from services.admission.pool import Pool

NAMESPACE = "limbeck"
IDLE_S = 60.0


class Governor:
    """`Pool` with the process's monotonic clock."""

    def __init__(self, charging: Charging) -> None:
        import ray

        now = time.monotonic()
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._silent_until = now + (LEASE_S if again else 0.0)
        self._pool = Pool(now, Counting(charging))
        self._watch: asyncio.Task[None] | None = None

    async def renew(self, report: Report) -> Grant:
        if self._watch is None:
            self._watch = asyncio.create_task(self._leave_when_idle())
        now = time.monotonic()
        if now < self._silent_until:
            return Grant({}, {}, 0, Charging.KEEP, self._silent_until - now)
        return self._pool.renew(report, now)

    async def forget(self, worker: str) -> None:
        self._pool.forget(worker)

    async def _leave_when_idle(self) -> None:
        import ray

        while not self._pool.is_idle(time.monotonic(), IDLE_S):
            await asyncio.sleep(IDLE_S / 4)
        ray.actor.exit_actor()


def governor_of(account: str, charging: Charging) -> Any:
    """The cluster's governor of an account, started if there is none."""
    import ray

    options = {
        "name": f"governor-{account}", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached",
        "num_cpus": 0, "max_restarts": -1, "max_task_retries": 0,
    }  # fmt: skip
    return ray.remote(Governor).options(**options).remote(charging)
