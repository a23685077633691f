"""The run's money: reserved, spent, given back, and never more of it than the cap, whatever dies."""

import asyncio
import time
from pathlib import Path

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.call import Call, Message, Reply, Sampling, Verdict, VerdictKind
from schemas.money import Amount, Price, Usage
from services.admission.charging import Charging
from services.admission.governor import Governor
from services.admission.lease import LEASE_S, Grant, Report
from services.fanout.allowance import Allowance
from services.fanout.size import Demand, grown, seen, worst_case
from services.journal.frame import Frame, Kind
from services.journal.place import Journal
from services.journal.writer import JournalWriter
from services.ledger.books import NOTHING, Account, Advance, Books, Caps, Excess
from services.ledger.cashier import Cashier

ANSWERED = Reply(Verdict(VerdictKind.ANSWERED))


def usd(nano: int) -> Amount:
    return Amount(nano, 0, 0)


def test_an_advance_covers_the_next_call_or_is_nothing() -> None:
    books = Books(Caps(1000), NOTHING)
    assert books.renew("a", Account(), usd(900), usd(300)).amount == usd(900)
    refused = books.renew("b", Account(), usd(300), usd(300))
    assert refused.amount == NOTHING and not refused.exhausted  # a's money may come back
    books.renew("a", Account(spent=usd(750)), NOTHING, NOTHING)
    assert books.renew("b", Account(), usd(300), usd(300)).exhausted
    assert books.renew("b", Account(), usd(900), usd(250)).amount == usd(250)


def test_two_workers_that_each_hold_half_a_call_s_money_do_not_wait_for_each_other() -> None:
    books = Books(Caps(100), NOTHING)
    books.renew("a", Account(held=usd(40)), NOTHING, NOTHING)
    books.renew("b", Account(held=usd(40)), NOTHING, NOTHING)
    assert books.renew("a", Account(), usd(60), usd(60)).amount == usd(60)


def test_a_cap_of_zero_pays_for_nothing_and_lets_free_calls_through() -> None:
    books = Books(Caps(0), NOTHING)
    assert books.renew("a", Account(), usd(5), usd(5)).exhausted
    free = books.renew("a", Account(), Amount(0, 10, 1), Amount(0, 10, 1))
    assert free.amount == Amount(0, 10, 1)


@pytest.mark.parametrize(
    ("caps", "reached"), [(Caps(calls=3), "calls"), (Caps(tokens=30), "tokens"), (Caps(10, 30, 9), "tokens")]
)
def test_calls_and_tokens_are_caps_too_and_the_one_that_is_reached_is_named(caps: Caps, reached: str) -> None:
    books = Books(caps, NOTHING)
    one = Amount(0, 10, 1)
    assert books.renew("a", Account(), one.times(5), one).amount.covers(one.times(3))
    books.renew("a", Account(spent=one.times(3)), NOTHING, NOTHING)
    assert books.renew("a", Account(spent=one.times(3)), one, one).exhausted == (f"budget.{reached}",)


def test_a_report_that_comes_twice_changes_nothing() -> None:
    books = Books(Caps(1000), usd(100))
    for _ in range(3):
        books.renew("a", Account(usd(200), usd(50)), NOTHING, NOTHING)
    assert books.total == usd(350)


def test_a_lease_that_has_run_out_gives_its_money_up() -> None:
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=4)
    books, call = Books(Caps(1000), NOTHING), Demand(1, 1, usd(400))
    account, wanted, need = allowance.account(2, call, now=0.0)
    allowance.advanced(books.renew("w", account, wanted, need), 0.0)
    assert allowance.may_start(call, 0.1)
    assert not allowance.may_start(call, LEASE_S + 0.1)
    account, _, _ = allowance.account(2, call, now=LEASE_S + 0.1)
    assert account.held == NOTHING


class Money(RuleBasedStateMachine):
    """Workers lease, send, settle and die, and the cashier too; every cap holds against the true bill at every step."""

    LIMIT = Amount(5_000, 800, 60)

    @initialize()
    def start(self) -> None:
        self.now, self.silent_until = 0.0, 0.0
        self.books = Books(Caps(*self.LIMIT), NOTHING)
        self.workers: dict[str, Allowance] = {}
        self.flying: dict[str, list[tuple[Demand, Demand]]] = {}
        self.journal: dict[str, Amount] = {}  # of each segment: what is settled
        self.born = 0
        for _ in range(3):
            self.hire()

    def hire(self) -> None:
        name = f"w{self.born}"
        self.born += 1
        self.workers[name] = Allowance("run", name, {}, None, governed=False, banked=True, window=1_000)
        self.flying[name], self.journal[name] = [], NOTHING

    def doubtful(self, name: str) -> Amount:
        total = self.journal[name]
        for demand, _ in self.flying.get(name, []):
            total = total.plus(demand.money)
        return total

    @rule(data=st.data(), cost=st.integers(0, 900), tokens=st.integers(1, 90), waiting=st.integers(0, 6))
    def renew(self, data: st.DataObject, cost: int, tokens: int, waiting: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        call = Demand(1, 1, Amount(cost, tokens, 1))
        account, wanted, need = self.workers[name].account(waiting, call, self.now)
        if self.now < self.silent_until:
            wanted = need = NOTHING
        advance = self.books.renew(name, account, wanted, need)
        lost = data.draw(st.booleans()) and data.draw(st.booleans())
        if not lost:  # a reply may be lost on its way
            self.workers[name].advanced(advance, self.now)
        while self.workers[name].may_start(call, self.now) and data.draw(st.booleans()):
            self.flying[name].append((call, self.workers[name].start(call, self.now)))

    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data: st.DataObject, share: float) -> None:
        busy = sorted(name for name, calls in self.flying.items() if calls and name in self.workers)
        if not busy:
            return
        name = data.draw(st.sampled_from(busy))
        demand, taken = self.flying[name].pop()
        cost = Amount(int(demand.money.nano_usd * share), int(demand.money.tokens * share), 1)
        self.journal[name] = self.journal[name].plus(cost)
        self.workers[name].settle(taken, ANSWERED, cost, self.now, self.now)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def kill_a_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[name]
        self.books.bury(name, self.doubtful(name))
        self.hire()

    @rule()
    def kill_the_cashier(self) -> None:
        self.books = Books.restored(Caps(*self.LIMIT), {name: self.doubtful(name) for name in self.journal})
        self.silent_until = self.now + LEASE_S

    @invariant()
    def the_bill_is_within_every_cap(self) -> None:
        bill = NOTHING
        for name in getattr(self, "journal", {}):
            bill = bill.plus(self.doubtful(name))  # at worst every call in flight is answered and paid for
        assert self.LIMIT.covers(bill)


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_budget_is_used_to_within_one_call(costs: list[int]) -> None:
    """One worker, one call at a time: it stops only where the next call could pass the cap."""
    books, allowance, now, spent = Books(Caps(3_000), NOTHING), None, 0.0, 0
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=1)
    for cost in costs:
        call = Demand(1, 1, usd(400))
        now += 0.01
        account, wanted, need = allowance.account(1, call, now)
        allowance.advanced(books.renew("w", account, wanted, need), now)
        if not allowance.may_start(call, now):
            assert spent + 400 > 3_000
            return
        taken = allowance.start(call, now)
        allowance.settle(taken, ANSWERED, usd(cost), now, now)
        spent += cost
    assert spent <= 3_000


class Context:
    """What Ray tells an actor that it started again."""

    was_current_actor_reconstructed = True


def test_a_cashier_that_was_killed_knows_what_was_spent_and_waits_out_the_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path, "000001-1-0000")
    writer.append(Frame(Kind.SENT, b"k" * 32, b"a" * 16, {"nano_usd": 600, "tokens": 5}))
    writer.close()
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    again = Cashier(Caps(1000), NOTHING, {}, Journal(tmp_path, None))
    early = asyncio.run(again.renew("000002-1-0000", Account(), usd(100), usd(100)))
    assert early == Advance()
    now[0] += LEASE_S
    assert asyncio.run(again.renew("000002-1-0000", Account(), usd(900), usd(100))).amount == usd(400)


def test_a_governor_that_was_killed_waits_out_the_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = Report("run", "w", {"requests": 600.0}, None, True, {"requests": 5.0}, {})

    async def renewed() -> list[Grant]:
        again = Governor(Charging.REFUND)
        early = await again.renew(report)
        now[0] += LEASE_S
        return [early, await again.renew(report)]

    early, later = asyncio.run(renewed())
    assert early.window == 0 and not early.amounts and early.pause_s == LEASE_S
    assert later.window > 0 and later.amounts["requests"] >= 1


def test_the_schema_of_an_answer_is_reserved_for() -> None:
    rates, plain = Price(1.0, 1.0), Call("r", (Message("user", "hi"),), Sampling(0.0, 10, 0))
    more = worst_case(plain._replace(schema='{"type": "object"}'), rates).money.nano_usd
    assert more >= worst_case(plain, rates).money.nano_usd + rates.cost(Usage(len('{"type": "object"}'), 0))


def test_where_nobody_knows_how_a_server_counts_the_first_call_goes_alone_and_then_twice_as_many() -> None:
    books, one, wild = Books(Caps(10_000), NOTHING), Amount(100, 0, 1), Amount(9_000, 0, 0)
    new = Account(wild=wild)
    assert books.renew("a", new, one.times(8), one).amount == one  # a second one might cost more than is left
    assert books.renew("b", new, one, one) == Advance()  # not exhausted: it waits
    assert books.renew("c", Account(lane=1), one.times(8), one).amount == one.times(8)  # a lane that is known
    answered = Account(Amount(100, 0, 1), lane=0, answers=1, wild=wild)
    books.renew("a", answered, NOTHING, NOTHING)
    assert books.renew("b", new, one.times(8), one).amount == one.times(3)
    assert Books(Caps(10**9), NOTHING).renew("a", new, one.times(8), one).amount == one.times(8)  # money enough


def test_the_more_answers_cost_what_was_foreseen_the_more_calls_may_be_out() -> None:
    one, wild = Amount(100, 0, 1), Amount(9_900, 0, 0)

    def given(answers: int, excess: Excess = Excess()) -> int:
        books = Books(Caps(100_000), NOTHING)
        return books.renew("a", Account(answers=answers, excess=excess, wild=wild), one.times(900), one).amount.calls

    # 10 by the bound alone; with a chance of 1 in 10 that the next one costs wildly much, 91; in 100, 502.
    assert [given(0), given(9), given(99)] == [10, 91, 502]
    assert [given(9, Excess(0, 1)), given(99, Excess(0, 1))] == [19, 199]  # that chance is no small one here


def test_what_one_worker_sees_of_a_lane_all_reserve() -> None:
    books, one = Books(Caps(10_000), NOTHING), Amount(100, 0, 1)
    told = books.renew("a", Account(answers=1, excess=Excess(5_000, 100)), NOTHING, NOTHING)
    assert told.excess == Excess(5_000, 225)  # the longest thoughts of one answer are not the longest there will be
    books.renew("a", Account(answers=6, excess=Excess(5_000, 100)), NOTHING, NOTHING)
    assert books.renew("b", Account(answers=4), one, one).excess == Excess(5_000, 135)
    books.bury("a", one)
    assert books.renew("b", Account(answers=4), one, one).excess == Excess(5_000, 135)
    assert books.renew("c", Account(lane=1), one, one).excess == Excess()
    later = Books(Caps(10_000), one, {0: Excess(5_000, 100)})  # a start that finds it in the journal
    assert later.renew("d", Account(), one, one).excess == Excess(5_000, 225)


def test_whoever_may_not_send_holds_no_money() -> None:
    """Fewer calls in flight than workers: they take turns, and the last cents go to the one whose turn it is."""
    allowance, call = Allowance("run", "a", {}, None, governed=True, banked=True), Demand(1, 1, Amount(100, 0, 1))
    allowance.granted(Grant({}, {}, 1, Charging.REFUND, 0.0), 0.0)
    allowance.advanced(Advance(call.money), 0.0)
    assert allowance.account(3, call, 0.1)[0].held == call.money
    allowance.granted(Grant({}, {}, 0, Charging.REFUND, 0.0), 0.2)
    assert allowance.account(3, call, 0.2) == (Account(), NOTHING, call.money)  # yet it hears of the budget's end
    allowance.granted(Grant({}, {}, 1, Charging.REFUND, 30.0), 0.3)
    allowance.advanced(Advance(call.money), 0.3)
    assert allowance.account(3, call, 0.4)[0] == Account()  # nor does one that waits out a Retry-After


def test_money_that_is_held_goes_back_once_a_cap_is_passed() -> None:
    books, allowance, call = Books(Caps(1_000), NOTHING), None, Demand(1, 1, Amount(100, 0, 1))
    allowance = Allowance("run", "b", {}, None, governed=False, banked=True, window=9)
    account, wanted, need = allowance.account(5, call, 0.0)
    allowance.advanced(books.renew("b", account, wanted, need), 0.0)
    assert allowance.may_start(call, 0.0)
    books.renew("a", Account(spent=usd(1_500)), NOTHING, NOTHING)  # an answer that cost what nobody could foresee
    told = books.renew("b", *allowance.account(5, call, 0.1))
    assert told.recalled and not told.exhausted
    allowance.advanced(told, 0.1)
    assert not allowance.may_start(call, 0.1)
    books.renew("b", *allowance.account(5, call, 0.2))
    assert books.renew("a", Account(spent=usd(1_500)), call.money, call.money).exhausted


def test_what_an_answer_tells_of_its_servers_counting() -> None:
    rates, call = Price(1.0, 10.0), Call("r", (Message("user", "hi"),), Sampling(0.0, 100, 0))
    plain = worst_case(call, rates)
    assert seen(plain, Usage(20, 100)) == Excess()
    assert seen(plain, Usage(3_000, 100)) == Excess(3_000, 0)  # nobody knows how much of it was the text
    assert seen(plain, Usage(20, 500)) == Excess(0, 400)
    more = grown(plain, rates, Excess(3_000, 500))
    assert more == worst_case(call, rates, Excess(3_000, 500))
    assert seen(more, Usage(3_000, 100)) == Excess()
    assert seen(more, Usage(3_100, 800)) == Excess(3_100, 700)


def test_a_lease_on_rates_runs_out() -> None:
    allowance = Allowance("run", "w", {}, None, governed=True, banked=False)
    demand = Demand(1, 1, NOTHING)
    allowance.granted(Grant({"requests": 5.0}, {"requests": 5.0}, 4, Charging.REFUND, 0.0), 10.0)
    assert allowance.may_start(demand, 10.0 + LEASE_S)
    assert not allowance.may_start(demand, 10.1 + LEASE_S)
