"""A server that cannot be reached, before it is given up."""

from pathlib import Path

import pytest
from test_sender import ANSWER, LANE, Played, calls, refused, renewed, sender

from schemas.call import Reply, VerdictKind
from schemas.lane import PriceSpec
from schemas.money import Amount
from services.admission.charging import Charging
from services.admission.lease import Grant
from services.fanout import allowance, reach
from services.fanout.reach import BLIP_S, IN_A_ROW, LEAST, PROBE_S, Reach
from services.fanout.size import worst_case
from services.ledger.books import Advance

AWAY, THERE = VerdictKind.UNREACHABLE, VerdictKind.TRANSIENT


def test_a_lane_is_given_up_after_a_while_in_which_nothing_left() -> None:
    lane = Reach()
    for second in range(int(BLIP_S) + 1):
        assert not lane.is_gone(second - 0.1)
        lane.heard(AWAY, float(second))
    assert lane.is_gone(BLIP_S)
    lane.heard(THERE, BLIP_S)  # any word of the server will do
    assert not lane.is_gone(BLIP_S) and not lane.is_lost


def test_a_few_slow_attempts_do_not_give_a_lane_up() -> None:
    lane = Reach()
    for number in range(LEAST):
        assert not lane.is_gone(10.0 * number)
        lane.heard(AWAY, 10.0 * number)
    assert lane.is_gone(10.0 * LEAST)


def test_half_of_the_connections_may_fail_for_as_long_as_it_likes() -> None:
    lane = Reach()
    for number in range(1_000):
        lane.heard(AWAY if number % 2 else THERE, float(number))
        assert not lane.is_lost and not lane.is_gone(float(number))


def test_one_call_at_a_time_feels_for_a_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "PROBE_S", PROBE_S / 10)
    monkeypatch.setattr(reach, "BLIP_S", 1.0)
    adapter = Played(lambda number: refused(AWAY))
    work = sender(tmp_path, adapter, window=200)

    assert renewed(work, 200) == 0  # none is lost: the next start asks them all
    assert work.end is not None and work.end.detail == "unreachable: said so"
    assert adapter.sent <= 200 + 1.0 / (PROBE_S / 10) + IN_A_ROW  # 1,000 where each tried for itself
    assert (work.delta.sent, work.delta.failed) == (0, 0)


def test_a_call_that_is_still_out_does_not_keep_others_from_feeling_for_the_server(tmp_path: Path) -> None:
    lane = allowance.Allowance("run", "w", {}, None, governed=False, banked=False, window=9)
    call = worst_case(calls(1)[0], LANE.rates)
    taken = [lane.start(call, 0.0) for _ in range(9)]
    for one in taken[:IN_A_ROW]:
        lane.settle(one, refused(AWAY), Amount(), 0.0, 0.1)
    assert lane.reach.is_lost and not lane.may_start(call, 0.2)
    assert lane.may_start(call, 0.1 + PROBE_S)
    lane.start(call, 0.1 + PROBE_S)
    assert not lane.may_start(call, 0.2 + PROBE_S) and lane.may_start(call, 0.1 + 2 * PROBE_S)


def test_who_feels_for_a_server_without_money_leaves_the_rate_to_whoever_has_some() -> None:
    lane = allowance.Allowance("run", "w", {"requests": 120.0}, None, governed=True, banked=True)
    priced = LANE.model_copy(update={"free": False, "price": PriceSpec(input=1.0, output=1.0)})
    call = worst_case(calls(1)[0], priced.rates)
    lane.granted(Grant({"requests": IN_A_ROW + 1.0}, {"requests": 9.0}, 9, Charging.REFUND, 0.0), 0.0)
    for _ in range(IN_A_ROW):
        lane.settle(lane.start(call, 0.0), refused(AWAY), Amount(), 0.0, 0.1)
    lane.account(5, call, 1.0)
    lane.advanced(Advance(), 1.0)
    report = lane.report(5, call, 1.0)
    assert lane.reach.is_lost and report.wanted == {} and report.returned["requests"] >= 1.0
    lane.account(5, call, 1.0)
    lane.advanced(Advance(call.money), 1.0)
    assert lane.report(5, call, 1.0).wanted["requests"] == 1.0


def test_a_server_that_comes_back_gets_all_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "PROBE_S", PROBE_S / 10)

    def reply(number: int) -> Reply:
        return refused(AWAY) if number <= 60 else ANSWER

    work = sender(tmp_path, Played(reply), window=50)

    assert renewed(work, 50) == 50
    assert (work.delta.sent, work.delta.answered, work.end) == (50, 50, None)
