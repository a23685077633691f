"""The actor round `Books`: one a run. After a crash it starts again from the journal, and advances nothing until the
leases that it gave before have run out."""

import time
from pathlib import Path
from typing import Any

from schemas.money import Amount
from services.admission.lease import LEASE_S
from services.journal.index import WriterReader, segments_by_writer
from services.journal.place import Journal
from services.ledger.books import NOTHING, Account, Advance, Books, Caps, Excess


class Cashier:
    """`Books` for the workers of one run."""

    def __init__(self, caps: Caps, base: Amount, excess: dict[int, Excess], journal: Journal) -> None:
        import ray

        self._silent_until = 0.0
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._books = Books.restored(caps, spent_by_writer(journal.read()), excess)
            self._silent_until = time.monotonic() + LEASE_S
        else:
            self._books = Books(caps, base, excess)

    async def renew(self, worker: str, account: Account, wanted: Amount, next_call: Amount) -> Advance:
        if time.monotonic() < self._silent_until:
            return self._books.renew(worker, account, NOTHING, NOTHING)
        return self._books.renew(worker, account, wanted, next_call)

    async def bury(self, worker: str, spent: Amount) -> None:
        self._books.bury(worker, spent)


def spent_by_writer(root: Path) -> dict[str, Amount]:
    """What the segments of each writer say was spent, calls in doubt at their reservation."""
    return {writer: WriterReader(paths).totals.amount for writer, paths in segments_by_writer(root).items()}


def cashier(caps: Caps, base: Amount, excess: dict[int, Excess], journal: Journal) -> Any:
    """Start the actor. `excess`: of each lane, what earlier starts of the run saw."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    return ray.remote(Cashier).options(**options).remote(caps, base, excess, journal)
