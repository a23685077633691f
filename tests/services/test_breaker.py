"""Whether a lane is down, or calls are to blame: by what became of the calls beside them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.call import VerdictKind
from services.fanout.breaker import BESIDE, IN_A_ROW, NEVER_RIGHT, Breaker, Fault

ERROR, BAD = VerdictKind.TRANSIENT, VerdictKind.BAD_REQUEST
ITS_OWN = Fault(lane=False, opens=False)


def ended(
    fates: list[bool], kind: VerdictKind = ERROR, answered_before: bool = False, patient: bool = False
) -> list[Fault]:  # fmt: skip
    """What is said of the calls that fail, where those that fail are the last to end."""
    breaker = Breaker(answered_before, patient)
    numbers = [breaker.sent() for _ in fates]
    for number in numbers:
        if fates[number]:
            breaker.answered(number)
    return [breaker.failed(number, kind) for number in numbers if not fates[number]]


@pytest.mark.parametrize("kind", [ERROR, VerdictKind.TIMEOUT, VerdictKind.UNREACHABLE])
def test_calls_that_fail_among_answered_ones_never_close_a_lane(kind: VerdictKind) -> None:
    fates = [number % 20 != 3 for number in range(2_000)]
    assert ended(fates, kind) == [ITS_OWN] * 100


def test_a_lane_that_answers_nothing_any_more_is_given_up() -> None:
    faults = ended([True] * 100 + [False] * 40)
    assert faults[:IN_A_ROW] == [Fault(True, False)] * (IN_A_ROW - 1) + [Fault(True, True)]
    assert all(fault.lane for fault in faults)  # so that the next start asks all of them again


def test_the_last_calls_of_all_are_judged_by_those_before_them() -> None:
    assert ended([True] * 100 + [False] * (BESIDE - 1)) == [ITS_OWN] * (BESIDE - 1)


def test_the_first_call_that_does_not_even_leave_closes_a_lane_that_answers_nothing() -> None:
    assert ended([False], VerdictKind.UNREACHABLE) == [Fault(True, True)]


def test_calls_that_failed_before_are_asked_again_with_patience() -> None:
    assert ended([False] * 40, patient=True) == [Fault(True, False)] * 40
    assert ended([False], VerdictKind.UNREACHABLE, patient=True)[0].opens


@pytest.mark.parametrize("kind", [VerdictKind.AUTH, VerdictKind.OUT_OF_MONEY, VerdictKind.MISDIRECTED])
def test_a_verdict_on_the_account_closes_a_lane_at_once(kind: VerdictKind) -> None:
    assert ended([True] * 50 + [False], kind) == [Fault(True, True)]


def test_bad_requests_close_a_lane_that_has_never_answered() -> None:
    alone = ended([False] * NEVER_RIGHT, BAD)
    assert alone == [Fault(True, False)] * (NEVER_RIGHT - 1) + [Fault(True, True)]
    assert ended([False] * 100, BAD, answered_before=True) == [ITS_OWN] * 100
    assert ended([True] + [False] * 100, BAD) == [ITS_OWN] * 100
    assert ended([False] * 100, VerdictKind.REFUSED) == [ITS_OWN] * 100


@given(st.lists(st.booleans(), max_size=200))
def test_whoever_is_spared_stood_beside_an_answer(fates: list[bool]) -> None:
    failed = [number for number, fate in enumerate(fates) if not fate]
    for number, fault in zip(failed, ended(fates), strict=True):
        after = fates[number + 1 : number + 1 + BESIDE]
        before = fates[max(0, number - BESIDE + len(after)) : number]
        assert fault.lane == (not any(after + before)) and len(after + before) <= BESIDE
