"""Who has spent and reserved what, against the run's hard caps. Plain; the actor round it is `cashier`."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from schemas.job import Budget
from schemas.money import Amount, nano_usd

NOTHING = Amount()
CAPS = ("budget.usd", "budget.tokens", "budget.calls")  # as a spec names them
MARGIN, FEW = 1.25, 1.0  # over the most output seen: 2.25 times after one answer, 1.35 times after ten


class Caps(NamedTuple):
    """The most that a run may spend; None: no cap."""

    nano_usd: int | None = None
    tokens: int | None = None
    calls: int | None = None

    @property
    def any(self) -> bool:
        return any(cap is not None for cap in self)


def caps_of(budget: Budget | None) -> Caps:
    """The spec's budget as the ledger counts it."""
    if budget is None:
        return Caps()
    return Caps(None if budget.usd is None else nano_usd(budget.usd), budget.tokens, budget.calls)


class Excess(NamedTuple):
    """Tokens of a call that its server counts beyond what can be foreseen: of input, as for a system prompt that a
    gateway adds; of output beyond max_tokens, as for thoughts that it does not show. The most seen of each."""

    input: int = 0
    output: int = 0

    def most(self, other: "Excess") -> "Excess":
        return Excess(*map(max, self, other))


class Account(NamedTuple):
    """One worker's own sum, ever growing `spent` and what it holds for calls in flight and to come. Sums rather than
    changes: a report that is lost or repeated does no harm.

    answers, excess: how many it has had, and the most that was seen in one beyond what could be foreseen.
    wild: what a call may cost at a server whose counting nobody knows; nothing where it is known.
    """

    spent: Amount = NOTHING
    held: Amount = NOTHING
    lane: int = 0
    answers: int = 0
    excess: Excess = Excess()
    wild: Amount = NOTHING


class Advance(NamedTuple):
    """Money to hold beyond what was held. With none: `exhausted` names the caps under which there will be no more.
    `recalled`: a cap is passed, and what is not in flight goes back. `excess`: what to reserve a call, beyond what can
    be foreseen."""

    amount: Amount = NOTHING
    exhausted: tuple[str, ...] = ()
    recalled: bool = False
    excess: Excess = Excess()


class Books:
    """Never lets spent + held exceed a cap. `base` is what earlier starts of the run spent."""

    def __init__(self, caps: Caps, base: Amount, excess: Mapping[int, Excess] | None = None) -> None:
        self.caps, self.base = caps, base
        self.accounts: dict[str, Account] = {}
        self.excess = dict(excess or {})  # of each lane, of earlier starts, too

    @classmethod
    def restored(cls, caps: Caps, spent: Mapping[str, Amount], excess: Mapping[int, Excess] | None = None) -> "Books":
        """From the journal, after a crash: what each worker's segments say, where what they leave open counts as spent
        until that worker reports."""
        books = cls(caps, NOTHING, excess)
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
        lane, free = account.lane, self.free
        self.excess[lane] = self.excess.get(lane, Excess()).most(account.excess)
        answers = sum(a.answers for a in self.accounts.values() if a.lane == lane)
        excess = reserved(self.excess[lane], answers)
        over = [left < 0 and need + held > 0 for left, need, held in zip(free, next_call, account.held, strict=True)]
        # Free calls need no money, and are not held up by a budget that is used up.
        short = [need > 0 and left < need for left, need in zip(free, next_call, strict=True)]
        if any(over) or any(short):
            back = any(a.held != NOTHING for a in self.accounts.values())  # calls in flight will give money back
            caps = (cap for cap, lacks in zip(CAPS, zip(over, short, strict=True), strict=True) if any(lacks))
            return Advance(recalled=any(over), exhausted=() if back else tuple(caps), excess=excess)
        if wanted == NOTHING:
            return Advance(excess=excess)
        calls = self._may_fly(account, next_call, answers, free)
        if calls < 1:
            return Advance(excess=excess)
        if wanted.calls > calls:
            wanted = largest(next_call, wanted.times(int(calls) / wanted.calls))
        given = Amount(*(int(max(0, min(left, want))) for left, want in zip(free, wanted, strict=True)))
        self.accounts[worker] = account._replace(held=account.held.plus(given))
        return Advance(given, excess=excess)

    def _may_fly(self, account: Account, next_call: Amount, answers: int, free: tuple[float, ...]) -> float:
        """How many calls more may hold money in a lane. Where the server's counting is not known, twice as many as
        have been answered, for the first one tells, or as many as can be paid for if each costs wildly much by the
        chance that is left after so many answers that did not: 1 / (answers + 1)."""
        if not any(account.wild):
            return math.inf
        clean = 0 if any(self.excess[account.lane]) else answers
        costs = (need + most / (1 + clean) for need, most in zip(next_call, account.wild, strict=True))
        bearable = min(left / cost for left, cost in zip(free, costs, strict=True) if cost)
        held = sum(a.held.calls for a in self.accounts.values() if a.lane == account.lane)
        return max(bearable, 1.0 + 2.0 * answers) - held

    def bury(self, worker: str, spent: Amount) -> None:
        """A worker died; `spent` is all that its journal segment says, calls in doubt at their reservation."""
        self.accounts[worker] = self.accounts.get(worker, Account())._replace(spent=spent, held=NOTHING)


def reserved(seen: Excess, answers: int) -> Excess:
    """What to reserve a call where so much was seen in so many answers. Hidden input is a text that stays the same;
    thoughts differ, and the longest of a few is not the longest there will be."""
    return Excess(seen.input, math.ceil(seen.output * (MARGIN + FEW / max(1, answers))))


def largest(one: Amount, other: Amount) -> Amount:
    return Amount(*map(max, one, other))
