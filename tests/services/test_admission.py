"""Rates and calls in flight, on a clock that the test turns, against limiters of several kinds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.call import RateHint
from services.admission.bucket import SLOT_S, SLOWEST, Bucket
from services.admission.lease import LEASE_S, Report
from services.admission.pool import Pool
from services.admission.window import START, Window


def test_what_was_put_by_under_a_larger_limit_is_not_lost_to_turns() -> None:
    bucket = Bucket(14_400, 0.0, whole=True)
    bucket.refill({"a": 0.5, "b": 0.5}, 1.0)
    bucket.per_minute = 60
    granted = 0.0
    for tenth in range(11, 111):
        bucket.refill({}, tenth / 10)  # nobody's: they take turns
        granted += bucket.grant("a", 1.0, tenth / 10) + bucket.grant("b", 1.0, tenth / 10)
    assert 9 <= granted <= 12


def report(worker: str, run: str = "run", wanted: float = 1e6, **fields: object) -> Report:
    values: dict[str, object] = {
        "run": run, "worker": worker, "limits": {"requests": 600.0}, "concurrency": None,
        "waits": bool(fields.get("wanted", wanted)), "wanted": {"requests": wanted} if wanted else {}, "returned": {},
        **fields,
    }  # fmt: skip
    return Report(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [0.0, 0.3, 1.0])
def test_refusals_that_come_with_the_first_headers_are_not_held_against_the_limit_that_they_tell(asked: float) -> None:
    """Answers of one wave let another leave, and of both the governor hears at once."""
    pool, hint = Pool(0.0), RateHint({"requests": 1200.0}, {"requests": 4.0})
    pool.renew(report("w", limits={}), 0.0)
    told = {"ended": 23, "answered": 16, "refused": 7, "in_flight": 8, "peak": 16, "retry_after": asked, "hint": hint}
    pool.renew(report("w", wanted=8.0, limits={}, **told), 1.3)
    granted = 0.0
    for tick in range(1, 41):
        grant = pool.renew(report("w", wanted=5.0, limits={}, ended=5, answered=5, peak=8), 1.3 + tick / 4)
        granted += grant.amounts.get("requests", 0.0)
    assert granted >= 0.95 * 10 * 1200 / 60


class Minutes(RuleBasedStateMachine):
    """The governor's pool. Workers come, ask, return, fall silent, and tell of refusals and of what the server says is
    left; no minute ever holds more than the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.pool = 0.0, Pool(0.0)
        self.held = dict.fromkeys("abc", 0.0)
        self.sent: list[tuple[float, float]] = []

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        worker=st.sampled_from("abc"), wanted=st.integers(0, 2_000), spent=st.floats(0, 1), refused=st.floats(0, 1),
        ramp=st.integers(0, 2), overloaded=st.integers(0, 20), wait=st.floats(0, 30), left=st.floats(0, 700),
    )  # fmt: skip
    def renew(
        self, worker: str, wanted: int, spent: float, refused: float, ramp: int, overloaded: int, wait: float,
        left: float,
    ) -> None:  # fmt: skip
        used = int(self.held[worker] * spent)
        self.sent.append((self.now, used))
        told = report(
            worker, wanted=wanted, returned={"requests": self.held[worker] - used}, ended=used, peak=used,
            answered=used - int(used * refused), refused=int(used * refused), ramp=min(ramp, used),
            overloaded=min(overloaded, used), retry_after=wait, hint=RateHint({"requests": 700.0}, {"requests": left}),
        )  # fmt: skip
        grant = self.pool.renew(told, self.now)
        assert grant.pause_s <= 30 + 1e-6 and grant.window >= 0
        self.held[worker] = grant.amounts.get("requests", 0.0)
        assert 0 <= self.held[worker] <= wanted

    @rule(worker=st.sampled_from("abc"))
    def die(self, worker: str) -> None:
        self.sent.append((self.now, self.held[worker]))  # at worst all of its lease left
        self.held[worker] = 0.0
        self.pool.forget(worker)

    @invariant()
    def no_minute_holds_more_than_the_limit(self) -> None:
        out = sum(self.held.values())
        assert sum(amount for when, amount in self.sent if when > self.now - 60) + out <= 600 + 1e-6


TestMinutes = Minutes.TestCase
TestMinutes.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


class OneBucket(RuleBasedStateMachine):
    """A bucket alone: asked by changing workers, given back to, slowed and let go again."""

    LIMIT = 300.0

    def __init__(self) -> None:
        super().__init__()
        self.now, self.bucket = 0.0, Bucket(self.LIMIT, 0.0, whole=True)
        self.held = dict.fromkeys("abc", 0.0)
        self.moved: list[tuple[float, float]] = []

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(asking=st.sets(st.sampled_from("abc"), min_size=1), wanted=st.integers(0, 500))
    def ask(self, asking: set[str], wanted: int) -> None:
        self.bucket.refill(dict.fromkeys(asking, 1 / len(asking)), self.now)
        for worker in sorted(asking):
            given = self.bucket.grant(worker, float(wanted), self.now)
            assert 0 <= given <= wanted and given == int(given)
            self.held[worker] += given
            self.moved.append((self.now, given))

    @rule(worker=st.sampled_from("abc"), share=st.floats(0, 1))
    def give_back(self, worker: str, share: float) -> None:
        amount = float(int(self.held[worker] * share))
        self.held[worker] = 0.0  # what is not given back was used
        self.bucket.give_back(worker, amount, self.now)
        self.moved.append((self.now, -amount))

    @rule(by=st.floats(0.1, 0.9))
    def slow(self, by: float) -> None:
        self.bucket.slow(by)
        self.bucket.tighten()

    @rule(by=st.floats(0, 1))
    def recover(self, by: float) -> None:
        self.bucket.recover(by)

    @rule(remaining=st.floats(0, 300), age=st.floats(0, 5))
    def hear(self, remaining: float, age: float) -> None:
        before = self.bucket.level
        self.bucket.bound(remaining, (age, age / 2), self.now)
        assert self.bucket.level <= before + 1e-6

    @invariant()
    def no_minute_holds_more_than_the_limit(self) -> None:
        first = (self.now - 60) // SLOT_S
        assert sum(amount for when, amount in self.moved if when // SLOT_S >= first) <= self.LIMIT + 1e-6

    @invariant()
    def it_slows_down_to_no_less_than_its_slowest(self) -> None:
        assert SLOWEST <= self.bucket.factor <= 1.0


TestOneBucket = OneBucket.TestCase
TestOneBucket.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.floats(0, 1), st.integers(0, 200)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_bucket_never_grants_more_than_its_rate_and_burst(steps: list[tuple[str, float, int]]) -> None:
    bucket, now, granted = Bucket(6000, 0.0), 0.0, 0.0
    for worker, pause, wanted in steps:
        now += pause
        bucket.refill({"x": 0.5, "y": 0.5}, now)
        granted += bucket.grant(worker, wanted, now)
        assert granted <= 10 + now * 100 + bucket.capacity + 1e-6


def test_what_one_run_leaves_lying_the_other_may_take() -> None:
    pool, now, got = Pool(0.0), 0.0, 0.0
    for number in range(400):
        now += 0.25
        if number % 4 == 0:
            pool.renew(report("idle", "second", wanted=1), now)
        got += pool.renew(report("busy", "first"), now).amounts.get("requests", 0.0)
    assert got >= 0.85 * 10 * now


def test_a_worker_that_is_not_heard_of_leaves_its_share_of_the_window_to_the_others() -> None:
    pool = Pool(0.0)
    for _ in range(3):
        first = pool.renew(report("a", concurrency=10, limits={}), 0.1).window
        second = pool.renew(report("b", concurrency=10, limits={}), 0.1).window
    assert (first, second) == (5, 5)
    assert pool.renew(report("b", concurrency=10, limits={}), 0.2 + LEASE_S).window == 10


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
def test_shares_of_a_window_never_add_up_to_more_than_the_window(steps: list[tuple[str, int, bool]]) -> None:
    pool, windows, now = Pool(0.0), dict.fromkeys("abcd", 0), 0.0
    for worker, flying, wants in steps:
        now += 0.01
        in_flight = min(flying, windows[worker])
        told = report(worker, wanted=float(wants), in_flight=in_flight, concurrency=12, limits={})
        windows[worker] = pool.renew(told, now).window
        assert sum(windows.values()) <= 12


def test_a_server_s_figure_bounds_what_is_handed_out_and_never_raises_it() -> None:
    pool = Pool(0.0)
    pool.renew(report("a"), 0.0)
    low = pool.renew(report("a", hint=RateHint({"requests": 600.0}, {"requests": 0.0})), 1.0)
    assert low.amounts["requests"] == 0
    high = pool.renew(report("a", hint=RateHint({"requests": 600.0}, {"requests": 600.0})), 1.1)
    assert high.amounts["requests"] <= 2
    raised = pool.renew(report("a", hint=RateHint({"requests": 60_000.0}, {})), 1.2)
    assert raised.amounts["requests"] <= 2  # the spec's smaller limit stands


def test_a_ramp_limit_slows_the_lane_and_holds_it_there() -> None:
    pool, now = Pool(0.0), 0.0
    for _ in range(40):
        now += 0.25
        pool.renew(report("a"), now)
    pool.renew(report("a", ramp=3), now)
    got, start = 0.0, now
    for _ in range(240):
        now += 0.25
        got += pool.renew(report("a"), now).amounts["requests"]
    assert 0.6 * 10 * (now - start) <= got <= 0.8 * 10 * (now - start)


def test_a_window_doubles_until_the_first_refusal_and_then_feels_its_way() -> None:
    window = Window()
    for _ in range(4):
        window.answered(window.size, in_flight=window.size, now=0.0)
    assert window.size == START * 16
    window.refused(now=10.0)
    window.refused(now=10.5)
    cut = window.size
    assert cut == int(START * 16 * 0.7)
    window.answered(cut + 1, in_flight=cut, now=11.0)
    assert window.size == cut  # it waits to see whether the cut helped
    window.answered(cut + 1, in_flight=cut, now=13.0)
    assert cut < window.size < cut * 1.05
    window.refused(now=14.0)
    assert window.size < cut


@pytest.mark.parametrize("cuts", range(12))
def test_a_window_of_any_size_grows_where_all_of_it_is_used(cuts: int) -> None:
    window = Window()
    for cut in range(cuts):
        window.refused(now=10.0 * cut)
    before = window.size
    for second in range(1_000, 1_020):
        window.answered(5, in_flight=window.size, now=float(second))
    assert window.size > before


def test_a_window_grows_as_at_first_again_where_a_cut_turned_out_to_be_for_nothing() -> None:
    window = Window()
    window.refused(now=0.0)
    before = window.size
    window.resume()
    window.answered(before + 1, in_flight=before, now=3.0)
    assert window.size >= 2 * before


def test_a_window_that_is_not_full_does_not_grow_and_a_fixed_one_never_changes() -> None:
    idle, fixed, held = Window(), Window(8), Window()
    held.hold(0.0, 5.0)
    for _ in range(50):
        idle.answered(10, in_flight=2, now=1.0)
        fixed.answered(10, in_flight=8, now=1.0)
        held.answered(10, in_flight=16, now=1.0)
        fixed.refused(now=1.0)
    assert (idle.size, fixed.size, held.size) == (START, 8, START)


def test_a_server_that_says_it_is_overloaded_gets_fewer_calls_at_once_and_the_odd_error_changes_nothing() -> None:
    for overloaded, grows in ((15, False), (1, True)):
        pool = Pool(0.0)
        windows = []
        for second in range(1, 20):
            told = report("a", limits={}, in_flight=16, peak=5_000, ended=20, answered=20 - overloaded,
                          overloaded=overloaded)  # fmt: skip
            windows.append(pool.renew(told, second * 1.1).window)
        assert (windows[-1] >= START) == grows and (windows[-1] > 4) == grows


def test_what_one_worker_is_asked_to_wait_holds_for_the_account() -> None:
    pool = Pool(0.0)
    pool.renew(report("b"), 0.1)
    pool.renew(report("a", ended=60, refused=60, retry_after=30.0), 0.9)
    assert pool.renew(report("b", ended=1, answered=1), 1.05).pause_s > 25
