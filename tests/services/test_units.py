"""Units: every call is handed out, none twice, whatever dies."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.call import Call, Message, Sampling, call_key
from services.fanout.units import LARGEST, LOOK_AHEAD, SMALLEST, Trace, Unit, Units


@dataclass
class Numbers:
    """A plan of one call a number."""

    numbers: list[int]

    def calls(self) -> Iterator[Call]:
        return (Call(str(n), (Message("user", str(n)),), Sampling()) for n in self.numbers)


def rows(unit: Unit) -> list[int]:
    return [int(call.row) for call in unit.calls]


def known(unit: Unit) -> tuple[bool, ...]:
    return tuple(errand.known for errand in unit.errands)


def test_units_start_small_and_grow_to_the_largest() -> None:
    units = Units(Numbers(list(range(20_000))), ["m"], lambda key: False)
    sizes = []
    while unit := units.next("w"):
        sizes.append(len(unit.calls))
    assert sizes[0] == SMALLEST
    assert max(sizes) == LARGEST
    assert sum(sizes) == 20_000


def test_identical_calls_and_calls_that_are_paid_for_are_not_sent() -> None:
    paid = {call_key("m2", call.content()) for call in Numbers([5, 6]).calls()}
    units = Units(Numbers([1, 2, 2, 5, 6, 1]), ["m1", "m2"], paid.__contains__)
    unit = units.next("w")
    assert unit is not None and rows(unit) == [1, 2]
    assert units.reused == 4


def test_calls_that_were_given_up_are_counted_and_not_sent() -> None:
    failed = {call_key("m2", call.content()) for call in Numbers([2, 3]).calls()}
    units = Units(Numbers([1, 2, 3, 4]), ["m1", "m2"], lambda key: False, settled=failed.__contains__)
    unit = units.next("w")
    assert unit is not None and rows(unit) == [1, 4]
    assert (units.reused, units.failed) == (0, 2)


def test_what_one_lane_failed_to_answer_is_left_to_the_others_first() -> None:
    failed = {call_key("m1", call.content()) for call in Numbers([2, 3]).calls()}
    units = Units(Numbers([1, 2, 3]), ["m1", "m2"], lambda key: False, has_failed=failed.__contains__)
    first = units.next("a", lane=0)
    assert first is not None and (rows(first), known(first)) == ([1], (False,))
    second = units.next("b", lane=1)
    assert second is not None and (rows(second), known(second)) == ([2, 3], (False, False))
    units.bury("b", lambda key: False)  # that lane closes
    last = units.next("a", lane=0)
    assert last is not None and (rows(last), known(last)) == ([2, 3], (True, True))


def test_a_call_that_its_lane_may_have_failed_goes_to_another_one_where_the_lane_closes() -> None:
    units = Units(Numbers([1, 2]), ["m1", "m2"], lambda key: False)
    unit = units.next("a", lane=0)
    assert unit is not None
    units.doubt("a", unit.calls[1], Trace())
    units.done("a", unit.number)
    assert units.exhausted or units.next("b", lane=1) is None
    assert units.finished and units.bury("a", lambda key: True) == 1 and not units.finished
    other = units.next("b", lane=1)
    assert other is not None and (rows(other), known(other)) == ([2], (False,))


def test_what_waits_for_one_lane_goes_to_another_that_has_nothing_to_do() -> None:
    units = Units(Numbers(list(range(10))), ["slow", "fast"], lambda key: False)
    held = units.next("s", lane=0)
    assert held is not None and all(errand.others == (1,) for errand in held.errands)
    assert units.next("f", lane=1, wanted=4) is None and not units.is_over  # the slow one may yet give some back
    assert (units.idle("s"), units.idle("f")) == ({1: 4}, {})
    for call in held.calls[6:]:
        units.give_back("s", held.number, call)
    taken = units.next("f", lane=1, wanted=4)
    assert taken is not None and rows(taken) == [6, 7, 8, 9] and units.idle("s") == {}
    units.done("f", taken.number)
    assert units.bury("s", lambda key: False) == 6  # and no more: what it gave back is not its own
    last = units.next("f", lane=1)
    assert last is not None and rows(last) == list(range(6))
    units.done("f", last.number)
    assert units.is_over and units.finished


def test_a_call_that_its_lane_refused_does_not_come_back_to_it_and_has_been_sent() -> None:
    units = Units(Numbers([1, 2]), ["a", "b"], lambda key: False)
    first = units.next("w", lane=0)
    assert first is not None and units.next("x", lane=1) is None
    units.give_back("w", first.number, first.calls[0], Trace(sent=True, tried=True))
    units.give_back("w", first.number, first.calls[1])
    second = units.next("x", lane=1)
    assert second is not None
    assert [(e.sent, e.others) for e in second.errands] == [(True, ()), (False, (0,))]


UNFIT = Trace(sent=True, tried=True, unfit=True)


def test_a_call_that_a_lane_does_not_take_waits_for_another_lane() -> None:
    units = Units(Numbers([1, 2]), ["a", "b"], lambda key: False)
    first = units.next("w", lane=0)
    assert first is not None
    units.give_back("w", first.number, first.calls[0], UNFIT)
    units.done("w", first.number)
    assert units.next("w", lane=0) is None
    second = units.next("x", lane=1)
    assert second is not None and [(e.call.row, e.sent, e.others) for e in second.errands] == [("1", True, ())]


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_the_other_lane_is_gone_the_first_gives_the_verdict(when: str) -> None:
    units = Units(Numbers([1]), ["a", "b"], lambda key: False)
    if when == "before":
        units.absent(frozenset({1}), frozenset({1}))
    first = units.next("w", lane=0)
    assert first is not None and first.errands[0].others == ((1,) if when == "after" else ())
    units.give_back("w", first.number, first.calls[0], UNFIT)
    units.done("w", first.number)
    units.absent(frozenset({1}), frozenset({1}))
    last = units.next("w", lane=0)
    assert last is not None and [(e.call.row, e.others) for e in last.errands] == [("1", ())]
    units.done("w", last.number)
    assert units.finished


def test_what_a_dead_worker_doubted_goes_to_the_next_of_its_lane() -> None:
    units = Units(Numbers([1]), ["m"], lambda key: False)
    first = units.next("w")
    assert first is not None
    units.doubt("w", first.calls[0], Trace(sent=True))
    units.done("w", first.number)
    units.bury("w", lambda key: False)
    again = units.next("x")
    assert again is not None and rows(again) == [1]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "out of money"])
def test_what_only_a_lane_that_is_gone_could_take_is_left_and_the_others_go_on(closed: bool) -> None:
    small = 20  # calls, the last, are all that lane 0 takes; it asks first, and finds none among those looked at
    count = LOOK_AHEAD + LARGEST + small
    units = Units(
        Numbers([*range(count)]),
        ["a", "b"],
        lambda key: False,
        fits=lambda lane, call: lane == 1 or int(call.row) >= count - small,
    )
    assert units.next("w", lane=0) is None and not units.is_over  # the other has yet to ask
    taken = units.next("x", lane=1)
    assert taken is not None and units.next("w", lane=0) is None and not units.is_over
    units.bury("x", lambda key: False)
    units.absent(frozenset({1}) if closed else frozenset(), frozenset({1}))
    got: list[int] = []
    while (unit := units.next("w", lane=0)) is not None:
        got += rows(unit)
        units.done("w", unit.number)
    assert got == list(range(count - small, count)) and units.is_over and not units.finished


def test_another_worker_of_the_same_lane_is_idle_too() -> None:
    units = Units(Numbers(list(range(4))), ["m"], lambda key: False)
    assert units.next("w") is not None and units.next("x", wanted=3) is None
    assert (units.idle("w"), units.is_over) == ({0: 3}, False)


def test_what_a_closed_lane_failed_and_another_one_answers_has_not_failed() -> None:
    units = Units(Numbers([1]), ["a", "b"], lambda key: False)
    first = units.next("w", lane=0)
    assert first is not None
    units.doubt("w", first.calls[0], Trace())  # which its lane counts as failed
    units.done("w", first.number)
    units.bury("w", lambda key: True)
    assert units.failed == -1


def test_a_lane_that_could_not_take_a_call_is_not_named_for_it() -> None:
    units = Units(
        Numbers([1, 2, 3]), ["a", "b"], lambda key: False, fits=lambda lane, call: lane == 0 or call.row == "2"
    )
    unit = units.next("w", lane=0)
    assert unit is not None and [errand.others for errand in unit.errands] == [(), (1,), ()]


@given(st.lists(st.integers(0, 300), max_size=300), st.lists(st.sampled_from(["work", "die", "finish"]), max_size=60))
def test_every_call_is_answered_once_though_workers_die(numbers: list[int], events: list[str]) -> None:
    units = Units(Numbers(numbers), ["m"], lambda key: False)
    held: list[Unit] = []
    answered: list[int] = []
    for event in [*events, *["work", "finish"] * (len(numbers) + 60)]:
        if event == "work" and (unit := units.next("w")):
            held.append(unit)
        elif event == "finish" and held:
            answered += rows(unit := held.pop())
            units.done("w", unit.number)
        elif event == "die":
            units.bury("w", lambda key: False)
            held.clear()
    assert units.finished
    assert sorted(answered) == sorted(set(numbers))


def test_what_a_dead_worker_had_answered_is_not_sent_again() -> None:
    units = Units(Numbers(list(range(10))), ["m"], lambda key: False)
    unit = units.next("w")
    assert unit is not None
    done = {call_key("m", call.content()) for call in unit.calls[:4]}
    assert units.bury("w", done.__contains__) == 6
    again = units.next("x")
    assert again is not None and rows(again) == list(range(4, 10))
    assert not units.finished


EVENTS = st.lists(st.tuples(st.sampled_from(["work", "finish", "move", "die"]), st.integers(0, 1)), max_size=80)


@given(st.lists(st.integers(0, 100), max_size=100), EVENTS)
def test_every_call_is_answered_once_though_lanes_pass_them_on(
    numbers: list[int], events: list[tuple[str, int]]
) -> None:
    units = Units(Numbers(numbers), ["m0", "m1"], lambda key: False)
    held: list[list[tuple[int, list[Call]]]] = [[], []]
    answered: list[int] = []
    end = [(event, lane) for event in ("work", "finish") for lane in (0, 1)] * (len(numbers) + 80)
    for event, lane in [*events, *end]:
        name, mine = f"w{lane}", held[lane]
        if event == "work" and (unit := units.next(name, lane, 3)):
            mine.append((unit.number, list(unit.calls)))
        elif event == "move" and mine and units.idle(name) and mine[-1][1]:
            units.give_back(name, mine[-1][0], mine[-1][1].pop())
        elif event == "finish" and mine:
            number, calls = mine.pop()
            answered += [int(call.row) for call in calls]
            units.done(name, number)
        elif event == "die":
            units.bury(name, lambda key: False)
            mine.clear()
    assert units.finished and units.is_over
    assert sorted(answered) == sorted(set(numbers))
