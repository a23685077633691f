"""Hundreds of kills at named points of a call's life, without Ray: the sender, its journal and its ledger are one
process that is forked, killed, and started again from what is on disk."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.call import Call, Message, Reply, Sampling, Verdict, VerdictKind, call_key
from schemas.lane import Teacher
from schemas.money import Amount, Usage, nano_usd
from services.fanout.allowance import Allowance
from services.fanout.sender import Sender, Stopped
from services.fanout.units import Errand
from services.journal.frame import Frame, Kind, encode
from services.journal.index import JournalIndex
from services.journal.writer import JournalWriter
from services.ledger.books import Account, Advance, Books, Caps
from services.ledger.cashier import spent_by_writer
from services.teachers.chat import Chat

pytestmark = pytest.mark.slow
POINTS = ("after_reserve", "after_send", "after_body", "mid_frame", "before_settle")
ROUNDS = 220
CALLS, WINDOW = 600, 6
AMPLE, SCARCE = nano_usd(3.0), nano_usd(0.2)  # all answers alone cost $0.24, calls in doubt beside them
LANE = Teacher.model_validate(
    {"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "price": {"input": 4.0, "output": 16.0}}
)


class Fuse:
    """Kills this process at the `count`th passing of one point."""

    def __init__(self, point: str, count: int) -> None:
        self._point, self._left = point, count

    def passes(self, point: str) -> bool:
        self._left -= point == self._point
        return point == self._point and self._left <= 0

    def at(self, point: str) -> None:
        if self.passes(point):
            os.kill(os.getpid(), signal.SIGKILL)


class Provider:
    """A teacher that keeps its own bill, a line for each request that reached it."""

    def __init__(self, bill: Path, fuse: Fuse) -> None:
        self._bill = os.open(bill, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._fuse = fuse

    async def send(self, call: Call) -> Reply:
        self._fuse.at("after_reserve")
        await asyncio.sleep(0)
        used = Usage(20, random.Random(call.row).randint(1, 40))
        os.write(self._bill, f"{call.row} {LANE.rates.cost(used)}\n".encode())
        self._fuse.at("after_send")
        await asyncio.sleep(0.001)
        choice = {"message": {"content": f"answer {call.row}"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        self._fuse.at("after_body")
        return Reply(Verdict(VerdictKind.ANSWERED), 200, body, Chat.usage(body))

    async def close(self) -> None:
        """Nothing to close."""


class TornWriter(JournalWriter):
    """Dies in the middle of an append where the fuse says so."""

    def __init__(self, root: Path, name: str, fuse: Fuse) -> None:
        super().__init__(root, name)
        self._fuse = fuse

    def append(self, frame: Frame) -> None:
        if frame.kind is Kind.ANSWERED and self._fuse.passes("mid_frame"):
            data = encode(frame)
            os.write(self._file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(frame)
        if frame.kind is Kind.ANSWERED:
            self._fuse.at("before_settle")


class Ledger:
    """Books that a restart rebuilds from the journal."""

    def __init__(self, name: str, journal: Path, limit: int) -> None:
        self.name, self.books = name, Books.restored(Caps(limit), spent_by_writer(journal))

    async def grant(self, report: Any) -> None:
        return None

    async def advance(self, account: Account, wanted: Amount, next_call: Amount) -> Advance:
        return self.books.renew(self.name, account, wanted, next_call)


def calls() -> list[Call]:
    return [Call(str(i), (Message("user", f"question {i}"),), Sampling(0.0, 40, 0)) for i in range(CALLS)]


async def work(journal: Path, bill: Path, acknowledged: Path, name: str, fuse: Fuse, limit: int) -> None:
    """One start: send what the journal does not hold, note every call that is seen through."""
    index = JournalIndex(journal)
    left = [call for call in calls() if call_key(LANE.name, call.content()) not in index]
    index.close()
    ledger = Ledger(name, journal, limit)
    allowance = Allowance("run", name, {}, None, governed=False, banked=True, window=WINDOW)
    sender = Sender(LANE, Provider(bill, fuse), TornWriter(journal, name, fuse), allowance, ledger)
    renewing = asyncio.create_task(sender.renew_leases())
    noted = os.open(acknowledged, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def one(call: Call) -> None:
        try:
            await sender.run(Errand(call))
        except Stopped:
            return
        os.write(noted, f"{call.row}\n".encode())

    await asyncio.gather(*(one(call) for call in left))
    sender.done()
    await renewing
    acknowledged.with_name("ended").write_text(sender.end.reason if sender.end else "done")


def forked(action: Callable[[], None]) -> int:
    """Run `action` in a fork; the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed(folder: Path, rounds: int, limit: int) -> Counter[str]:
    """Start again and again, killed `rounds` times, then left alone to the end; kills by point."""
    rng, kills = random.Random(11), Counter[str]()
    journal, bill, acknowledged = folder / "journal", folder / "bill", folder / "acknowledged"
    for number in range(1, 10 * rounds):
        point = POINTS[number % len(POINTS)]
        fuse = Fuse(point, rng.randint(1, 4)) if sum(kills.values()) < rounds else Fuse("never", 1)
        start = partial(work, journal, bill, acknowledged, f"{number:06d}-1-0000", fuse, limit)
        if not forked(lambda start=start: asyncio.run(start())):  # type: ignore[misc]
            break
        kills[point] += 1
    return kills


def test_two_hundred_kills_lose_no_answer(tmp_path: Path) -> None:
    kills = killed(tmp_path, ROUNDS, AMPLE)
    assert sum(kills.values()) >= 200 and set(kills) == set(POINTS)
    assert (tmp_path / "ended").read_text() == "done"
    check(tmp_path, sum(kills.values()), AMPLE)


def test_kills_pass_no_budget_that_does_not_reach(tmp_path: Path) -> None:
    """A ledger that forgot at a kill what was spent before would spend the budget again at every start."""
    kills = killed(tmp_path, 60, SCARCE)
    assert (tmp_path / "ended").read_text() == "exhausted"
    check(tmp_path, sum(kills.values()), SCARCE)


def check(folder: Path, kills: int, limit: int) -> None:
    billed, acknowledged = (folder / "bill").read_text().split("\n"), (folder / "acknowledged").read_text().split()
    index = JournalIndex(folder / "journal")
    by_row = {call.row: call_key(LANE.name, call.content()) for call in calls()}
    assert all(by_row[row] in index for row in acknowledged)
    lines = [line.split() for line in billed if line]
    paid = sum(int(cost) for _, cost in lines)
    assert paid <= index.totals.nano_usd <= limit
    # Beyond the calls in flight at a kill nothing is asked for twice.
    assert len(lines) - len({row for row, _ in lines}) <= kills * WINDOW
    answered = sum(LANE.rates.cost(Usage(20, random.Random(row).randint(1, 40))) for row in acknowledged)
    settled = index.totals.nano_usd - index.totals.in_doubt_nano
    assert settled >= answered
