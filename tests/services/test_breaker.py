"""Whether a lane is down, or calls are to blame: by what became of the calls sent after them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.call import VerdictKind
from services.fanout.breaker import (
    AFTER,
    ENOUGH,
    FREE_IN_A_ROW,
    GARBLED,
    IN_A_ROW,
    NEVER_ITS_OWN,
    NEVER_RIGHT,
    NO_MORE_RIGHT,
    Breaker,
    Fault,
)

ERROR, TIMEOUT, BAD = VerdictKind.TRANSIENT, VerdictKind.TIMEOUT, VerdictKind.BAD_REQUEST
ITS_OWN, OPEN = Fault(settled=True, opens=False), Fault(settled=False, opens=False)
DOWN = Fault(settled=False, opens=True)


def ended(
    fates: list[bool], kind: VerdictKind = ERROR, answered_before: bool = False, known: bool = False
) -> list[Fault]:  # fmt: skip
    """What is said of the calls that fail, where those that fail are the last to end."""
    breaker = Breaker(answered_before)
    numbers = [breaker.sent() for _ in fates]
    for number in numbers:
        if fates[number]:
            breaker.answered(number)
    return [breaker.failed(number, kind, known) for number in numbers if not fates[number]]


@pytest.mark.parametrize("kind", [ERROR, TIMEOUT, VerdictKind.IN_DOUBT])
def test_calls_that_fail_among_answered_ones_are_to_blame_and_never_close_a_lane(kind: VerdictKind) -> None:
    fates = [number % 20 != 3 for number in range(2_000)]
    assert ended(fates, kind) == [ITS_OWN] * 100


@pytest.mark.parametrize(("kind", "most"), [(ERROR, FREE_IN_A_ROW), (TIMEOUT, IN_A_ROW)])
def test_a_lane_that_answers_nothing_any_more_is_given_up_and_no_call_is_blamed(kind: VerdictKind, most: int) -> None:
    faults = ended([True] * 100 + [False] * 80, kind)
    assert faults[:most] == [OPEN] * (most - 1) + [DOWN]
    assert not any(fault.settled for fault in faults)


def test_a_lane_that_never_answered_is_given_up_sooner() -> None:
    assert ended([False] * IN_A_ROW) == [OPEN] * (IN_A_ROW - 1) + [DOWN]


def test_of_the_last_calls_of_all_nobody_can_tell() -> None:
    assert ended([True] * 100 + [False] * 5) == [OPEN] * 5
    assert ended([False] + [True] * (ENOUGH - 1)) == [OPEN]


@pytest.mark.parametrize("kind", NEVER_ITS_OWN)
def test_some_verdicts_never_speak_of_the_call(kind: VerdictKind) -> None:
    fates = [number % 20 != 3 for number in range(200)]
    assert not any(fault.settled for fault in ended(fates, kind))


@pytest.mark.parametrize("kind", [VerdictKind.AUTH, VerdictKind.OUT_OF_MONEY, VerdictKind.MISDIRECTED])
def test_a_verdict_on_the_account_or_the_way_there_closes_a_lane_at_once(kind: VerdictKind) -> None:
    assert ended([True] * 50 + [False] + [True] * 50, kind) == [DOWN]


def test_bad_requests_close_a_lane_that_answers_nothing_any_more_and_are_asked_again() -> None:
    assert ended([False] * NEVER_RIGHT, BAD) == [OPEN] * (NEVER_RIGHT - 1) + [DOWN]
    for fates, before in (([False] * NO_MORE_RIGHT, True), ([True] * 50 + [False] * NO_MORE_RIGHT, False)):
        assert ended(fates, BAD, before) == [OPEN] * (NO_MORE_RIGHT - 1) + [DOWN]
    assert ended([False] * 100, VerdictKind.REFUSED) == [ITS_OWN] * 100


@pytest.mark.parametrize("answered_before", [False, True])
def test_answers_that_are_none_close_a_lane_that_gives_no_others(answered_before: bool) -> None:
    assert ended([False] * GARBLED, VerdictKind.MALFORMED, answered_before) == [OPEN] * (GARBLED - 1) + [DOWN]
    assert ended([number % 6 > 0 for number in range(60)], VerdictKind.MALFORMED) == [ITS_OWN] * 10


@pytest.mark.parametrize("answers", range(ENOUGH))
@pytest.mark.parametrize(("failures", "blamed"), [(ENOUGH - 1, True), (ENOUGH, False), (GARBLED - 1, False)])
def test_a_few_that_fail_last_are_to_blame_and_more_may_be_an_outage(failures: int, blamed: bool, answers: int) -> None:
    """Though some calls after them are answered: too few to tell."""
    breaker = Breaker()
    breaker.answered(breaker.sent())
    last = [breaker.sent() for _ in range(failures)]
    for number in last:
        breaker.failed(number, VerdictKind.MALFORMED)
    for _ in range(answers):
        assert breaker.answered(breaker.sent()) == []
    assert breaker.ended() == (last if blamed else [])


@pytest.mark.parametrize("kind", NEVER_ITS_OWN)
def test_what_was_charged_is_settled_when_it_fails_again_whatever_the_verdict(kind: VerdictKind) -> None:
    breaker = Breaker(answered_before=True)
    assert breaker.failed(breaker.sent(), kind, known=True, paid=True) == ITS_OWN
    assert breaker.failed(breaker.sent(), kind, known=True) == OPEN


@pytest.mark.parametrize("kind", [BAD, ERROR])
def test_who_fails_before_those_after_it_are_answered_is_found_out_later(kind: VerdictKind) -> None:
    breaker = Breaker()
    failed, *others = [breaker.sent() for _ in range(1 + AFTER)]
    assert breaker.failed(failed, kind) == OPEN
    assert [breaker.answered(number) for number in others[:ENOUGH]] == [[]] * (ENOUGH - 1) + [[failed]]
    assert breaker.answered(others[ENOUGH]) == []


def test_calls_that_failed_before_are_asked_again_without_end_where_they_cost_nothing_and_else_once() -> None:
    for kind in (ERROR, BAD):
        assert ended([False] * 200, kind, answered_before=True, known=True) == [OPEN] * 200
    assert ended([False] * 200, TIMEOUT, answered_before=True, known=True) == [ITS_OWN] * 200
    assert ended([False] * IN_A_ROW, TIMEOUT, known=True)[-1] == DOWN  # it has never answered


@given(st.lists(st.booleans(), max_size=200))
def test_a_call_is_blamed_only_where_most_of_those_after_it_were_answered(fates: list[bool]) -> None:
    failed = [number for number, fate in enumerate(fates) if not fate]
    for number, fault in zip(failed, ended(fates), strict=True):
        assert fault.settled == (sum(fates[number + 1 : number + 1 + AFTER]) >= ENOUGH)
