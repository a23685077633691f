"""Who has spent and reserved what, against the run's hard caps. Plain; the actor round it is `cashier`."""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.money import Amount

NOTHING = Amount()
PLENTY = 50  # times what a worker asks for at once


class Caps(NamedTuple):
    """The most that a run may spend; None: no cap."""

    nano_usd: int | None = None
    tokens: int | None = None
    calls: int | None = None

    @property
    def names(self) -> list[str]:
        """The keys of a spec that set them."""
        keys = ("budget.usd", "budget.tokens", "budget.calls")
        return [key for key, cap in zip(keys, self, strict=True) if cap is not None]

    @property
    def any(self) -> bool:
        return any(cap is not None for cap in self)


class Account(NamedTuple):
    """One worker's own sum, ever growing `spent` and what it holds for calls in flight and to come. Sums rather than
    changes: a report that is lost or repeated does no harm."""

    spent: Amount = NOTHING
    held: Amount = NOTHING


class Advance(NamedTuple):
    """Money to hold beyond what was held. With none: `exhausted` says that there will be no more. `scarce`: so little
    is left that a call which costs more than was reserved would matter."""

    amount: Amount = NOTHING
    exhausted: bool = False
    scarce: bool = False


class Books:
    """Never lets spent + held exceed a cap. `base` is what earlier starts of the run spent."""

    def __init__(self, caps: Caps, base: Amount) -> None:
        self.caps, self.base = caps, base
        self.accounts: dict[str, Account] = {}

    @classmethod
    def restored(cls, caps: Caps, spent: Mapping[str, Amount]) -> "Books":
        """From the journal, after a crash: what each worker's segments say, where what they leave open counts as spent
        until that worker reports."""
        books = cls(caps, NOTHING)
        books.accounts = {name: Account(amount) for name, amount in spent.items()}
        return books

    @property
    def total(self) -> Amount:
        """Spent and held by all."""
        whole = self.base
        for account in self.accounts.values():
            whole = whole.plus(account.spent).plus(account.held)
        return whole

    @property
    def free(self) -> tuple[float, ...]:
        """What is left under each cap; infinite without one."""
        return tuple(
            float("inf") if cap is None else cap - used for cap, used in zip(self.caps, self.total, strict=True)
        )

    def renew(self, worker: str, account: Account, wanted: Amount, next_call: Amount) -> Advance:
        """Book a worker's sums and advance up to `wanted`, at least `next_call` or nothing at all: two workers that
        each held half a call's money would wait for each other."""
        self.accounts[worker] = account
        if wanted == NOTHING:
            return Advance()
        free = self.free
        # Free calls need no money, and are not held up by a budget that is used up.
        if all(need == 0 or left >= need for left, need in zip(free, next_call, strict=True)):
            given = Amount(*(int(max(0, min(left, want))) for left, want in zip(free, wanted, strict=True)))
            self.accounts[worker] = Account(account.spent, account.held.plus(given))
            scarce = any(left < PLENTY * want for left, want in zip(free, wanted, strict=True))
            return Advance(given, scarce=scarce)
        return Advance(exhausted=all(a.held == NOTHING for a in self.accounts.values()))

    def bury(self, worker: str, spent: Amount) -> None:
        """A worker died; `spent` is all that its journal segment says, calls in doubt at their reservation."""
        self.accounts[worker] = Account(spent)
