"""Each thing that can go wrong on the wire, alone, at five per cent: every call ends in the journal, none is paid for
twice without need, and the books agree with the teacher's bill. Real sockets, one process, no Ray."""

import asyncio
import json
import pickle
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from schemas.call import Call, Message, Reply, Sampling, VerdictKind, call_key
from schemas.lane import Teacher
from schemas.money import Amount, Price, Usage, micro_of
from services.fake_teacher.server import Behaviour, serve
from services.fanout.allowance import Allowance
from services.fanout.sender import Doubted, Sender
from services.fanout.units import Errand
from services.journal.index import JournalIndex
from services.journal.writer import JournalWriter
from services.ledger.books import Account, Advance, Books, Caps
from services.teachers.adapter import open_adapter

pytestmark = pytest.mark.slow
CALLS, WINDOW = 200, 32
PRICE = Price(0.40, 1.60)
GARBLED = ("html", "malformed")
FAILED = {"400": "bad_request", **dict.fromkeys(GARBLED, "malformed_answer")}  # every other is answered in the end
FAULTS = ("429", "500", "503", "529", "400", "slow_down", "reset", "truncated", "hang", "html", "malformed", "refusal",
          "blank")  # fmt: skip


class OwnBooks:
    """A run's money without an actor, and no governor."""

    def __init__(self) -> None:
        self.books = Books(Caps(10**12), Amount())

    async def grant(self, report: Any) -> None:
        return None

    async def advance(self, account: Account, wanted: Amount, next_call: Amount) -> Advance:
        return self.books.renew("w", account, wanted, next_call)


def calls() -> list[Call]:
    return [Call(str(i), (Message("user", f"What is thing {i}?"),), Sampling(0.0, 64, 0)) for i in range(CALLS)]


async def against(behaviour: Behaviour, work: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
    """The bill of a teacher that served `work`, which is given its root URL."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stopped = asyncio.Event()
    serving = asyncio.create_task(serve(behaviour, 0, ready.set_result, 120, stopped))
    await work(f"http://127.0.0.1:{await ready}")
    stopped.set()
    return (await serving).shown()


def lane(provider: str, root: str) -> Teacher:
    price = {"input": PRICE.input, "output": PRICE.output}
    base_url = root if provider == "anthropic" else f"{root}/v1"
    return Teacher.model_validate(
        {"provider": provider, "model": "m", "base_url": base_url, "price": price, "timeout_s": 1}
    )


async def see_through(folder: Path, teacher: Teacher) -> None:
    allowance = Allowance("run", "w", {}, None, governed=False, banked=True, window=WINDOW)
    adapter, journal = open_adapter(teacher), JournalWriter(folder, "000001-1-0000")
    sender = Sender(teacher, adapter, journal, allowance, OwnBooks())
    renewing = asyncio.create_task(sender.renew_leases())
    ends = await asyncio.gather(*(sender.run(Errand(call)) for call in calls()), return_exceptions=True)
    assert all(end is None or isinstance(end, Doubted) for end in ends)
    sender.done()
    await renewing
    assert sender.end is None
    await adapter.close()
    journal.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_kind(tmp_path: Path, fault: str, provider: str) -> None:
    behaviour = Behaviour(latency_s=0.02, words=(4, 40), faults={fault: 0.05}, hang_s=60, price=PRICE)
    bill = asyncio.run(against(behaviour, lambda root: see_through(tmp_path, lane(provider, root))))
    index = JournalIndex(tmp_path)
    keys = {call.row: call_key(f"{provider}/m", call.content()) for call in calls()}
    ended = [index.failure(key) for key in keys.values() if key not in index]
    assert all(frame is not None and frame.meta["kind"] == FAILED.get(fault) for frame in ended)
    assert bool(ended) == (fault in FAILED)
    charged = len(index) + (len(ended) if fault in GARBLED else 0)
    assert bill["repeated_unexplained"] == 0 and bill["unique"] == charged
    spent = index.totals.nano_usd
    assert micro_of(spent - index.totals.in_doubt_nano) == bill["answered_micro_usd"]
    assert spent >= bill["usd"] * 1e9 - 0.5


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_account_without_money_is_told_as_its_provider_tells_it(tmp_path: Path, provider: str) -> None:
    async def ask(root: str) -> None:
        adapter = open_adapter(lane(provider, root))
        assert (await adapter.send(calls()[0])).verdict.kind is VerdictKind.OUT_OF_MONEY
        assert (await adapter.send(calls()[0]._replace(sampling=Sampling(0.0, -4)))).verdict.detail.startswith(
            "HTTP 400"
        )
        await adapter.close()

    bill = asyncio.run(against(Behaviour(faults={"quota": 1.0}), ask))
    paid = "402" if provider == "anthropic" else "429 insufficient_quota"
    assert bill["refused"] == {paid: 1, "400 invalid_request": 1}


async def reply_of(answer: Callable[[web.Request], web.Response], key_file: Path) -> Reply:
    """What comes back from a server of one's own."""

    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    teacher = lane("openai", f"http://127.0.0.1:{runner.addresses[0][1]}")
    adapter = open_adapter(teacher.model_copy(update={"api_key": f"file:{key_file}"}))
    try:
        return await adapter.send(calls()[0])
    finally:
        await adapter.close()
        await runner.cleanup()


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_error_says_what_it_cost_whatever_its_status(tmp_path: Path, status: int) -> None:
    (tmp_path / "key").write_text("none")
    told = {"error": {"code": "server_error"}, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    reply = asyncio.run(reply_of(lambda request: web.json_response(told, status=status), tmp_path / "key"))
    assert reply.verdict.kind is not VerdictKind.ANSWERED and reply.usage == Usage(9, 4)


def test_a_server_that_echoes_the_request_gives_no_key_away(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-canary-77aa")
    for status in (200, 400):

        def echo(request: web.Request, status: int = status) -> web.Response:
            return web.json_response({"error": None, "message": dict(request.headers)}, status=status)

        reply = asyncio.run(reply_of(echo, tmp_path / "key"))
        assert b"Bearer [key]" in reply.body and b"canary" not in pickle.dumps(reply)


def test_a_placeholder_for_a_key_is_no_secret_and_an_answer_keeps_its_words(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("test")
    body = {"choices": [{"message": {"content": "A test of the test."}}], "error": None}
    reply = asyncio.run(reply_of(lambda request: web.json_response(body), tmp_path / "key"))
    assert json.loads(reply.body) == body and reply.verdict.kind is VerdictKind.ANSWERED


def test_an_answer_with_long_and_many_headers_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("none")
    told = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    headers = {"x-trace": "t" * 60_000, **{f"x-{n}": "v" for n in range(300)}}
    reply = asyncio.run(reply_of(lambda request: web.json_response(told, headers=headers), tmp_path / "key"))
    assert reply.verdict.kind is VerdictKind.ANSWERED


def test_a_date_in_retry_after_is_read_by_our_clock_where_the_server_tells_none() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        until = formatdate(time.time() + 30, usegmt=True)
        writer.write(f"HTTP/1.1 429 X\r\nRetry-After: {until}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    async def asked() -> Reply:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            adapter = open_adapter(lane("openai", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
            reply = await adapter.send(calls()[0])
            await adapter.close()
            return reply

    verdict = asyncio.run(asked()).verdict
    assert verdict.kind is VerdictKind.RATE_LIMITED and 25 <= (verdict.retry_after or 0) <= 30
