"""One worker's calls, against an adapter that does what the test says."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.call import Call, Message, Reply, Sampling, Verdict, VerdictKind, call_key
from schemas.lane import PriceSpec, Teacher
from schemas.money import Amount, Usage
from services.admission.charging import Charging
from services.admission.lease import Grant
from services.fanout import allowance as allowance_of
from services.fanout.allowance import Allowance
from services.fanout.breaker import GARBLED, NEVER_RIGHT
from services.fanout.sender import Doubted, End, Moved, Sender, Stopped
from services.fanout.size import worst_case
from services.fanout.units import Errand, Trace
from services.journal import writer
from services.journal.frame import Frame, Kind, decode_payload
from services.journal.index import JournalIndex, frames
from services.journal.writer import JournalWriter
from services.ledger.books import Account, Advance, Books, Caps
from services.teachers.verdict import classify

LANE = Teacher.model_validate({"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "free": True})
PRICED = Teacher(provider="openai", model="m", base_url=LANE.base_url, price=PriceSpec(input=1.0, output=2.0))
ANSWER = Reply(Verdict(VerdictKind.ANSWERED), 200, b"{}", Usage(1, 1))


class Played:
    """An adapter whose replies a function gives, by the number of the attempt."""

    def __init__(self, reply: Callable[[int], Reply]) -> None:
        self.sent, self._reply = 0, reply

    async def send(self, call: Call) -> Reply:
        self.sent += 1
        await asyncio.sleep(0)
        return self._reply(self.sent)

    async def close(self) -> None:
        """Nothing to close."""


def refused(kind: VerdictKind, wait: float | None = None) -> Reply:
    return Reply(Verdict(kind, "said so", wait), 400)


def sender(folder: Path, adapter: Any, window: int = 4, name: str = "000001-1-0000") -> Sender:
    allowance = Allowance("run", "w", {}, None, governed=False, banked=False, window=window)
    return Sender(LANE, adapter, JournalWriter(folder, name), allowance, None)


def priced(folder: Path, adapter: Any, window: int = 4) -> Sender:
    allowance = Allowance("run", "w", {}, None, governed=False, banked=False, window=window)
    return Sender(PRICED, adapter, JournalWriter(folder, "000001-1-0000"), allowance, None)


def written(folder: Path) -> list[tuple[Kind, Frame]]:
    """Frames of all segments, in order."""
    paths = sorted(folder.glob("*.seg"))
    return [(kind, decode_payload(kind, bytes(payload))) for path in paths for _, kind, payload in frames(path)]


def calls(count: int) -> list[Call]:
    return [Call(str(i), (Message("user", f"question {i}"),), Sampling()) for i in range(count)]


async def see_through(work: Sender, count: int) -> int:
    """Run calls side by side; how many were seen through."""
    done = await asyncio.gather(*(work.run(Errand(call)) for call in calls(count)), return_exceptions=True)
    assert all(d is None or isinstance(d, Doubted | Stopped) for d in done)
    return sum(not isinstance(d, Stopped) for d in done)


def renewed(work: Sender, count: int) -> int:
    """The same, with leases kept up meanwhile."""

    async def go() -> int:
        renewing = asyncio.create_task(work.renew_leases())
        done = await see_through(work, count)
        work.done()
        await renewing
        return done

    return asyncio.run(go())


@pytest.mark.parametrize("kind", [VerdictKind.TRANSIENT, VerdictKind.UNREACHABLE])
def test_a_call_that_a_stop_keeps_from_its_retry_has_been_sent_if_it_left(tmp_path: Path, kind: VerdictKind) -> None:
    adapter = Played(lambda number: refused(kind))
    work = sender(tmp_path, adapter, window=1)

    async def go() -> list[bool]:
        tasks = [asyncio.create_task(work.run(Errand(call))) for call in calls(2)]
        while adapter.sent < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(work.run(Errand(calls(3)[2]))))
        work.stop(End("stopped"))
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        return [isinstance(end, Stopped) and end.trace.sent for end in ends]

    left = kind is VerdictKind.TRANSIENT
    assert asyncio.run(go()) == [left, left, False]
    assert (work.delta.sent, work.delta.retried) == (2 * left, 0)


def test_the_attempt_after_those_that_never_left_is_no_repeat(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.UNREACHABLE) if number < 3 else ANSWER)
    work = sender(tmp_path, adapter)
    assert asyncio.run(see_through(work, 1)) == 1
    assert (work.delta.answered, work.delta.sent, work.delta.retried) == (1, 1, 0)


@pytest.mark.parametrize("kind", [VerdictKind.TOO_LARGE, VerdictKind.BAD_REQUEST])
def test_what_a_lane_does_not_take_another_may_and_where_none_is_left_it_has_failed(
    tmp_path: Path, kind: VerdictKind
) -> None:
    work = sender(tmp_path, Played(lambda number: refused(kind)))

    async def go() -> Trace:
        with pytest.raises(Moved) as moved:
            await work.run(Errand(calls(1)[0], others=(1,)))
        return moved.value.trace

    assert asyncio.run(go()) == Trace(sent=True, tried=True, unfit=True) and work.delta.failed == 0
    assert asyncio.run(see_through(work, 1)) == 1 and work.delta.failed == 1


@pytest.mark.parametrize("kind", [VerdictKind.AUTH, VerdictKind.OUT_OF_MONEY, VerdictKind.MISDIRECTED])
def test_the_first_answer_that_no_other_call_can_better_stops_the_lane(tmp_path: Path, kind: VerdictKind) -> None:
    adapter = Played(lambda number: refused(kind))
    work = sender(tmp_path, adapter)
    assert asyncio.run(see_through(work, 40)) == 0
    assert work.end == End("closed", f"{kind.value}: said so")
    assert adapter.sent <= 4  # those in flight


def test_a_transient_error_is_tried_again_and_the_answer_kept(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.TRANSIENT) if number == 1 else ANSWER)
    work = sender(tmp_path, adapter)
    assert asyncio.run(see_through(work, 1)) == 1
    assert (work.delta.answered, work.delta.retried, adapter.sent) == (1, 1, 2)


@pytest.mark.parametrize(("used", "sent"), [(Usage(50, 50), 1), (Usage(50, 0), 1), (Usage(), 2), (None, 2)])
def test_an_error_that_says_what_it_cost_is_in_the_books_and_is_not_paid_for_again(
    used: Usage | None, sent: int, tmp_path: Path
) -> None:
    failed = Reply(Verdict(VerdictKind.TRANSIENT, "HTTP 500 server_error"), 200, b"{}", used)
    adapter = Played(lambda number: failed if number == 1 else ANSWER)
    work = priced(tmp_path, adapter)
    assert asyncio.run(see_through(work, 1)) == 1 and adapter.sent == sent
    cost, answered = used or Usage(), sent - 1
    said, books = work.delta, JournalIndex(tmp_path).totals
    assert said.nano_usd == books.nano_usd == 1_000 * (cost.input_tokens + 2 * cost.output_tokens + 3 * answered)
    assert (said.input_tokens, said.output_tokens) == (books.input_tokens, books.output_tokens)
    assert books.input_tokens == cost.input_tokens + answered and not books.in_doubt


def test_a_filter_that_read_the_prompt_may_have_billed_it(tmp_path: Path) -> None:
    reply = Reply(classify(400, b'{"error":{"code":"content_filter"}}', {}), 400)
    work = priced(tmp_path, Played(lambda number: reply))
    assert asyncio.run(see_through(work, 1)) == 1
    prompt = worst_case(calls(1)[0]._replace(sampling=Sampling(max_tokens=1)), PRICED.rates).money.nano_usd - 2_000
    books = JournalIndex(tmp_path).totals
    assert work.delta.nano_usd == books.nano_usd == books.in_doubt_nano == prompt > 0
    assert JournalIndex(tmp_path).is_settled(failed_keys(tmp_path, 1)[0])


def test_an_error_that_cost_more_than_could_be_foreseen_is_reserved_for_from_then_on(tmp_path: Path) -> None:
    failed = Reply(Verdict(VerdictKind.TRANSIENT, "HTTP 500"), 500, b"{}", Usage(9_000, 3_000))
    work = priced(tmp_path, Played(lambda number: failed if number == 1 else ANSWER), window=1)
    asyncio.run(see_through(work, 2))
    assert JournalIndex(tmp_path).totals.over == {PRICED.name: [9_000, 3_000 - Sampling().max_tokens]}
    assert (work.delta.hidden, work.delta.overlong) == (9_000, 3_000 - Sampling().max_tokens)
    last = [frame.meta for kind, frame in written(tmp_path) if kind is Kind.SENT][-1]
    assert last["nano_usd"] >= PRICED.rates.cost(Usage(9_000, 3_000))


def test_a_lane_whose_answers_are_none_is_closed_and_each_call_can_be_asked_again(tmp_path: Path) -> None:
    adapter = Played(lambda number: Reply(Verdict(VerdictKind.MALFORMED), 200, b"<html>") if number > 9 else ANSWER)
    work = sender(tmp_path, adapter, window=1)
    asyncio.run(see_through(work, 100))
    work.settle_last()
    assert work.end is not None and work.end.detail.startswith("malformed_answer")
    assert 9 + GARBLED <= adapter.sent <= 9 + GARBLED + 1
    index = JournalIndex(tmp_path)
    assert [index.is_settled(key) for key in failed_keys(tmp_path, 100)] == [False] * (GARBLED - 1)


@pytest.mark.parametrize(("failures", "starts"), [(3, 1), (5, 2)])
def test_an_error_that_was_charged_is_paid_for_once_more_at_the_most(
    failures: int, starts: int, tmp_path: Path
) -> None:
    """Of so many calls that fail last. Three may be their own doing, more perhaps the lane's."""
    failed = Reply(Verdict(VerdictKind.TRANSIENT, "HTTP 500"), 200, b"{}", Usage(5, 5))
    sent = 0
    for start in range(1, 5):
        index = JournalIndex(tmp_path)
        todo = [call for call in calls(9 + failures) if not index.is_settled(call_key(LANE.name, call.content()))]
        todo = [call for call in todo if call_key(LANE.name, call.content()) not in index]
        errands = [Errand(call, index.has_failed(call_key(LANE.name, call.content()))) for call in todo]
        adapter = Played(lambda number, answers=9 if start == 1 else 0: ANSWER if number <= answers else failed)
        allowance = Allowance("run", "w", {}, None, governed=False, banked=False, window=1)
        place = JournalWriter(tmp_path, f"00000{start}-1-0000")
        work = Sender(LANE, adapter, place, allowance, None, has_answered=start > 1)

        async def go(work: Sender = work, errands: list[Errand] = errands) -> None:
            await asyncio.gather(*(work.run(errand) for errand in errands), return_exceptions=True)
            work.settle_last()

        asyncio.run(go())
        sent += adapter.sent
    assert sent == 9 + failures * starts


@pytest.mark.parametrize("answers", [0, 2, 6])
def test_the_last_answers_of_all_that_are_none_are_not_paid_for_again_where_their_lane_answers(
    answers: int, tmp_path: Path
) -> None:
    adapter = Played(lambda number: ANSWER if number <= answers else Reply(Verdict(VerdictKind.MALFORMED), 200, b"<"))
    work = sender(tmp_path, adapter, window=1)
    assert asyncio.run(see_through(work, answers + 2)) == answers + 2
    work.settle_last()
    index = JournalIndex(tmp_path)
    assert [index.is_settled(key) for key in failed_keys(tmp_path, answers + 2)] == [answers > 0] * 2
    assert index.totals.failed == 2


def test_a_bad_request_is_never_tried_again_and_kept_as_a_failure(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.BAD_REQUEST) if number == 1 else ANSWER)
    work = sender(tmp_path, adapter, window=1)
    assert asyncio.run(see_through(work, 3)) == 3
    assert adapter.sent == 3
    assert JournalIndex(tmp_path).totals.failed == 1


def test_a_lane_that_has_answered_nothing_but_bad_requests_is_closed(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.BAD_REQUEST))
    work = sender(tmp_path, adapter, window=1)
    asyncio.run(see_through(work, 100))
    assert work.end is not None and work.end.detail.startswith("bad_request")
    assert adapter.sent <= NEVER_RIGHT + 1 < 100


def failed_keys(folder: Path, count: int) -> list[bytes]:
    index = JournalIndex(folder)
    keys = [call_key(LANE.name, call.content()) for call in calls(count)]
    return [key for key in keys if index.has_failed(key)]


def test_however_often_a_lane_that_answers_nothing_is_asked_no_call_is_settled(tmp_path: Path) -> None:
    for start in (1, 2, 3):
        work = sender(tmp_path, Played(lambda number: refused(VerdictKind.BAD_REQUEST)), name=f"00000{start}-1-0000")
        assert asyncio.run(see_through(work, 5)) == 5
    index = JournalIndex(tmp_path)
    assert [index.is_settled(key) for key in failed_keys(tmp_path, 5)] == [False] * 5


def test_a_bad_request_to_a_lane_that_answers_is_settled(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.BAD_REQUEST) if number == 3 else ANSWER)
    assert asyncio.run(see_through(sender(tmp_path, adapter, window=1), 9)) == 9
    (key,) = failed_keys(tmp_path, 9)
    index = JournalIndex(tmp_path)
    failure = index.failure(key)
    assert index.is_settled(key) and failure is not None and failure.meta["detail"] == "said so"
    assert index.totals.failed == 1


def test_a_failure_of_one_plan_is_no_matter_of_the_next(tmp_path: Path) -> None:
    """A worker has a sender for each plan; what it keeps from one to the next is whether its lane has answered."""
    first = sender(tmp_path, Played(lambda number: refused(VerdictKind.BAD_REQUEST) if number > 20 else ANSWER))
    assert asyncio.run(see_through(first, 21)) == 21
    allowance = Allowance("run", "w", {}, None, governed=False, banked=False, window=4)
    place = JournalWriter(tmp_path, "000001-1-0001")
    second = Sender(LANE, Played(lambda number: ANSWER), place, allowance, None, has_answered=first.has_answered)
    assert asyncio.run(see_through(second, 20)) == 20 and second.end is None
    assert first.has_answered and not sender(tmp_path, None, name="000001-1-0002").has_answered


def test_a_stop_does_not_wait_for_a_call_that_rests_before_its_next_try(tmp_path: Path) -> None:
    adapter = Played(lambda number: refused(VerdictKind.RATE_LIMITED, wait=60.0))
    work = sender(tmp_path, adapter)

    async def stopped_while_resting() -> float:
        running = asyncio.create_task(see_through(work, 3))
        while adapter.sent < 3:
            await asyncio.sleep(0)
        begun = asyncio.get_running_loop().time()
        work.stop(End("stopped"))
        assert await running == 0
        return asyncio.get_running_loop().time() - begun

    assert asyncio.run(stopped_while_resting()) < 5.0


def test_low_disk_stops_sending_before_an_answer_has_no_place_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Played(lambda number: ANSWER)
    work = sender(tmp_path, adapter)
    monkeypatch.setattr(writer, "LOW_DISK", 2**62)

    async def tick() -> None:
        renewing = asyncio.create_task(work.renew_leases())
        while work.end is None:
            await asyncio.sleep(0)
        work.done()
        await renewing

    asyncio.run(tick())
    assert work.end is not None and work.end.reason == "failed" and "low disk" in work.end.detail
    assert asyncio.run(see_through(work, 5)) == 0 and adapter.sent == 0


def test_a_retry_waits_at_least_as_long_as_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = sender(tmp_path, Played(lambda n: refused(VerdictKind.RATE_LIMITED, 7.0) if n == 1 else ANSWER))
    rests: list[float] = []

    async def rest(seconds: float, others: tuple[int, ...]) -> None:
        rests.append(seconds)

    monkeypatch.setattr(work, "_rest", rest)
    assert asyncio.run(see_through(work, 1)) == 1
    assert len(rests) == 1 and rests[0] >= 7.0


def test_retries_are_counted_once_they_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = sender(tmp_path, Played(lambda number: refused(VerdictKind.TRANSIENT)))

    async def rest(seconds: float, others: tuple[int, ...]) -> None:
        work.stop(End("stopped"))

    monkeypatch.setattr(work, "_rest", rest)
    assert asyncio.run(see_through(work, 1)) == 0
    assert (work.delta.sent, work.delta.retried) == (1, 0)


def test_what_a_server_counts_beyond_the_text_is_reserved_from_then_on(tmp_path: Path) -> None:
    """A gateway that adds a system prompt of 2,000 tokens: no bound of the text alone holds."""
    priced = LANE.model_copy(update={"free": False, "price": PriceSpec(input=1.0, output=1.0)})
    books = Books1(10_000_000)
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=1)
    answer = Reply(Verdict(VerdictKind.ANSWERED), 200, b"{}", Usage(2_000, 10))
    work = Sender(priced, Played(lambda number: answer), JournalWriter(tmp_path, "000001-1-0000"), allowance, books)

    renewed(work, 12)
    assert work.end == End("exhausted", "budget.usd")
    assert work.delta.nano_usd <= 10_000_000


@pytest.mark.parametrize(("calls_paid_for", "alone"), [(100, True), (100_000, False)])
def test_where_little_money_is_left_the_first_call_goes_alone(tmp_path: Path, calls_paid_for: int, alone: bool) -> None:
    """Its usage tells what a call really costs at a server that nobody knows; the others wait for that."""
    at, adapter = "http://127.0.0.1:9/v1", Slow()
    priced = Teacher(provider="openai", model="m", base_url=at, price=PriceSpec(input=1.0, output=1.0))
    books = Books1(calls_paid_for * worst_case(calls(1)[0], priced.rates).money.nano_usd)
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=8)
    work = Sender(priced, adapter, JournalWriter(tmp_path, "000001-1-0000"), allowance, books)

    assert renewed(work, 20) == 20
    assert (1 in adapter.beside[:2]) is not alone
    assert max(adapter.beside) >= 5


def test_attempts_that_never_left_spend_no_budget_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance_of, "PROBE_S", 0.01)
    adapter = Played(lambda number: refused(VerdictKind.UNREACHABLE) if number <= 20 else ANSWER)
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=4)
    work = Sender(LANE, adapter, JournalWriter(tmp_path, "000001-1-0000"), allowance, Books1(calls=6))

    assert renewed(work, 8) == 6
    assert (work.end, work.delta.sent) == (End("exhausted", "budget.calls"), 6)
    index = JournalIndex(tmp_path)
    assert (index.totals.answered, index.totals.amount.calls) == (6, 6)
    index.close()


class Slow:
    """Notes how many calls were out when each was sent."""

    def __init__(self) -> None:
        self.out, self.beside = 0, list[int]()

    async def send(self, call: Call) -> Reply:
        self.beside.append(self.out)
        self.out += 1
        await asyncio.sleep(0.01)
        self.out -= 1
        return ANSWER

    async def close(self) -> None:
        """Nothing to close."""


class Books1:
    """A run's money without an actor."""

    def __init__(self, nano_usd: int | None = None, calls: int | None = None) -> None:
        self.books = Books(Caps(nano_usd, calls=calls), Amount())

    async def grant(self, report: Any) -> None:
        return None

    async def advance(self, account: Account, wanted: Amount, next_call: Amount) -> Advance:
        return self.books.renew("w", account, wanted, next_call)


def test_a_call_that_is_dearer_than_what_is_left_does_not_hold_up_the_cheaper_ones(tmp_path: Path) -> None:
    priced = LANE.model_copy(update={"free": False, "price": PriceSpec(input=1.0, output=1.0)})
    adapter = Played(lambda number: ANSWER)
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=4)
    work = Sender(priced, adapter, JournalWriter(tmp_path, "000001-1-0000"), allowance, Books1(5_000_000))
    big = Call("big", (Message("user", "write a lot"),), Sampling(0.0, 1_000_000, 0))

    async def go() -> int:
        renewing = asyncio.create_task(work.renew_leases())
        done = await asyncio.gather(*(work.run(Errand(c)) for c in (big, *calls(8))), return_exceptions=True)
        work.done()
        await renewing
        return sum(d is None for d in done)

    assert asyncio.run(go()) == 8
    assert work.end == End("exhausted", "budget.usd")


async def handed_over(work: Sender, count: int, idle: dict[int, int], when: Callable[[], bool]) -> list[str]:
    """Run calls of which another lane could take the even ones; the rows that moved there."""
    errands = [Errand(call, others=(1,) if int(call.row) % 2 == 0 else ()) for call in calls(count)]
    tasks = [asyncio.create_task(work.run(errand)) for errand in errands]
    while not when():
        await asyncio.sleep(0)
    work.hand_over(idle, soon_s=0.5)
    work.hand_over({}, soon_s=0.5)
    await asyncio.sleep(0)
    moved = [str(n) for n, task in enumerate(tasks) if task.done() and isinstance(task.exception(), Moved)]
    work.stop(End("stopped"))
    await asyncio.gather(*tasks, return_exceptions=True)
    return moved


def test_calls_that_wait_go_to_a_lane_that_has_nothing_to_do_the_last_first(tmp_path: Path) -> None:
    work = sender(tmp_path, Played(lambda number: ANSWER), window=1)
    moved = asyncio.run(handed_over(work, 9, {1: 3}, lambda: work.delta.sent == 1))
    assert moved == ["4", "6", "8"]  # of 2, 4, 6 and 8: 0 has left


def test_where_a_place_is_what_calls_wait_for_another_worker_of_the_lane_takes_them(tmp_path: Path) -> None:
    full = sender(tmp_path, Played(lambda number: ANSWER), window=1)
    assert asyncio.run(handed_over(full, 5, {0: 2}, lambda: full.delta.sent == 1)) == ["3", "4"]
    closed = sender(tmp_path, Played(lambda number: ANSWER), window=0, name="000001-1-0001")
    assert asyncio.run(handed_over(closed, 5, {0: 2}, lambda: True)) == []  # no place is free for anybody


@pytest.mark.parametrize(
    ("kind", "pause_s", "goes"),
    [
        (VerdictKind.RATE_LIMITED, 3600.0, ["0", "2"]),
        (VerdictKind.RATE_LIMITED, 1.0, []),  # it would come back before the time that the server named
        (VerdictKind.TRANSIENT, 3600.0, []),  # it would have all its attempts again elsewhere, and there again
    ],
)
def test_a_refused_call_goes_elsewhere_only_where_its_lane_rests_for_long(
    tmp_path: Path, kind: VerdictKind, pause_s: float, goes: list[str]
) -> None:
    adapter = Played(lambda number: refused(kind, 3600.0))
    allowance = Allowance("run", "w", {}, None, governed=False, banked=False, window=4)
    work = Sender(LANE, adapter, JournalWriter(tmp_path, "000001-1-0000"), allowance, None)

    def paused() -> bool:
        if work.delta.sent < 3 or allowance.in_flight:
            return False
        allowance.granted(Grant({}, {}, 4, Charging.REFUND, pause_s), asyncio.get_running_loop().time())
        return True

    assert asyncio.run(handed_over(work, 3, {1: 9}, paused)) == goes
    assert adapter.sent == 3
