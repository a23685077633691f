"""Rates, calls in flight and money, on a clock that the test turns."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.lane import Limits
from services.admission.bucket import Bucket
from services.admission.governor import Admission, Demand, Settled
from services.admission.purse import Purse
from services.admission.window import START, Window


@given(st.integers(1, 60_000), st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 500)), max_size=60))
def test_a_bucket_never_lets_through_more_than_the_rate_and_one_second_s_worth(
    per_minute: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, taken, largest = Bucket(per_minute, 0.0), 0.0, 0.0, 0
    for pause, amount in steps:
        now += pause
        now += bucket.wait(amount, now) + 1e-9
        assert bucket.wait(amount, now) == 0
        bucket.take(amount, now)
        taken, largest = taken + amount, max(largest, amount)
        # A single demand beyond the bucket is let through in debt, so it may exceed the burst by itself.
        assert taken <= bucket.capacity + now * per_minute / 60 + largest + 1e-3


def test_the_full_rate_is_used_from_the_first_second() -> None:
    bucket, now, sent = Bucket(6000, 0.0), 0.0, 0
    while now < 10:
        if (wait := bucket.wait(1, now)) > 0:
            now += wait
        else:
            bucket.take(1, now)
            sent += 1
    assert 1000 <= sent <= 1101


def test_a_window_grows_while_it_is_full_and_cuts_once_an_episode() -> None:
    window = Window()
    for _ in range(200):
        window.answered(in_flight=window.size)
    grown = window.size
    assert grown > START
    window.refused(now=10.0)
    window.refused(now=10.5)
    assert window.size == int(grown * 0.7) or window.size == int((grown + 1) * 0.7)
    window.refused(now=12.0)
    assert window.size < grown * 0.6


def test_a_window_that_is_not_full_does_not_grow_and_a_fixed_one_never_changes() -> None:
    idle, fixed = Window(), Window(8)
    for _ in range(500):
        idle.answered(in_flight=2)
        fixed.answered(in_flight=8)
        fixed.refused(now=1.0)
    assert idle.size == START
    assert fixed.size == 8


def lease(admission: Admission, cost: int, count: int, now: float = 0.0, settled: Settled = Settled()) -> int:
    admission.settle("w", 0, settled, now)
    return admission.lease("w", 0, [Demand(10, 10, cost)] * count, now).calls


def test_a_lease_stops_at_the_last_call_that_the_budget_covers() -> None:
    admission = Admission([Limits()], Purse(limit=1000), 0.0)
    assert lease(admission, 300, 5) == 3
    # While calls are out their unused money may come back, so the lane waits; once none are, it is over.
    waiting = admission.lease("w", 0, [Demand(1, 1, 300)], 0.0)
    assert waiting.wait_s > 0 and not waiting.exhausted
    admission.settle("w", 0, Settled(reserved=900, cost=900), 0.0)
    assert admission.lease("w", 0, [Demand(1, 1, 300)], 0.0).exhausted


def test_a_budget_of_zero_pays_for_nothing_and_lets_free_calls_through() -> None:
    admission = Admission([Limits()], Purse(limit=0), 0.0)
    assert lease(admission, 1, 1) == 0
    assert lease(admission, 0, 4) == 4


def test_a_dead_worker_s_reservation_becomes_what_its_segment_says() -> None:
    admission = Admission([Limits()], Purse(limit=1000), 0.0)
    assert lease(admission, 400, 2) == 2
    admission.settle("w", 0, Settled(reserved=400, cost=150), 0.0)
    admission.bury("w", cost=150 + 400)
    assert (admission.purse.spent, admission.purse.reserved) == (550, 0)


class MoneyMachine(RuleBasedStateMachine):
    """Workers reserve, settle and die in any order; the limit holds at every step."""

    LIMIT = 5_000

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission([Limits()], Purse(limit=self.LIMIT), 0.0)
        self.out: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        self.paid: dict[str, int] = dict.fromkeys(self.out, 0)
        self.bill = 0

    @rule(worker=st.sampled_from("abc"), costs=st.lists(st.integers(0, 900), min_size=1, max_size=5))
    def reserve(self, worker: str, costs: list[int]) -> None:
        granted = self.admission.lease(worker, 0, [Demand(1, 1, cost) for cost in costs], 0.0).calls
        self.out[worker] += costs[:granted]

    @precondition(lambda self: any(self.out.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w, calls in self.out.items() if calls]))
        reserved = self.out[worker].pop()
        cost = data.draw(st.integers(0, reserved))
        self.bill += cost
        self.paid[worker] += cost
        self.admission.settle(worker, 0, Settled(reserved, cost), 0.0)

    @precondition(lambda self: any(self.out.values()))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w, calls in self.out.items() if calls]))
        in_doubt = sum(self.out[worker])
        self.bill += in_doubt  # at worst every one of them was answered and paid for
        self.admission.bury(worker, self.paid[worker] + in_doubt)
        self.out[worker], self.paid[worker] = [], 0

    @invariant()
    def the_bill_never_exceeds_the_limit_nor_the_books(self) -> None:
        assert self.bill <= self.admission.purse.spent <= self.LIMIT
        assert self.admission.purse.spent + self.admission.purse.reserved <= self.LIMIT


TestMoney = MoneyMachine.TestCase
TestMoney.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
