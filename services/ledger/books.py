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


class Excess(NamedTuple):
    """Tokens of a call that its server counts beyond what can be foreseen: of input, as for a system prompt that a
    gateway adds; of output beyond max_tokens, as for thoughts that it does not show. The most seen of each."""

    input: int = 0
    output: int = 0

    def most(self, other: "Excess") -> "Excess":
        return Excess(*map(max, self, other))


class Account(NamedTuple):
    """One worker's own sum, ever growing `spent` and what it holds for calls in flight and to come. Sums rather than
    changes: a report that is lost or repeated does no harm. `measured`: an answer of its lane has told what calls
    cost, or none came for long."""

    spent: Amount = NOTHING
    held: Amount = NOTHING
    lane: int = 0
    measured: bool = True
    excess: Excess = Excess()


class Advance(NamedTuple):
    """Money to hold beyond what was held. With none: `exhausted` says that there will be no more. `scarce`: so little
    is left that a call which costs more than was reserved would matter. `excess`: what was seen in the lane."""

    amount: Amount = NOTHING
    exhausted: bool = False
    scarce: bool = False
    excess: Excess = Excess()


class Books:
    """Never lets spent + held exceed a cap. `base` is what earlier starts of the run spent."""

    def __init__(self, caps: Caps, base: Amount) -> None:
        self.caps, self.base = caps, base
        self.accounts: dict[str, Account] = {}
        self.excess: dict[int, Excess] = {}  # of each lane

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
        excess = self.excess[account.lane] = self.excess.get(account.lane, Excess()).most(account.excess)
        if wanted == NOTHING:
            return Advance(excess=excess)
        free = self.free
        scarce = any(left < PLENTY * want for left, want in zip(free, wanted, strict=True))
        if scarce and self._is_unknown(worker, account.lane):
            return Advance(scarce=True, excess=excess)
        # Free calls need no money, and are not held up by a budget that is used up.
        if all(need == 0 or left >= need for left, need in zip(free, next_call, strict=True)):
            given = Amount(*(int(max(0, min(left, want))) for left, want in zip(free, wanted, strict=True)))
            self.accounts[worker] = account._replace(held=account.held.plus(given))
            return Advance(given, scarce=scarce, excess=excess)
        return Advance(exhausted=all(a.held == NOTHING for a in self.accounts.values()), excess=excess)

    def _is_unknown(self, worker: str, lane: int) -> bool:
        """Whether another worker's call is out that will tell what calls of a lane cost: where little money is left,
        the first one is answered before a second leaves."""
        others = [a for name, a in self.accounts.items() if a.lane == lane and name != worker]
        known = self.accounts[worker].measured or any(a.measured for a in others)
        return not known and any(a.held != NOTHING for a in others)

    def bury(self, worker: str, spent: Amount) -> None:
        """A worker died; `spent` is all that its journal segment says, calls in doubt at their reservation."""
        earlier = self.accounts.get(worker, Account(measured=False))
        self.accounts[worker] = earlier._replace(spent=spent, held=NOTHING)
