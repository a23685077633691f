"""The fake teacher's HTTP server: aiohttp on loopback, both dialects, limits, faults, and `GET /bill`."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from schemas.money import Price, Usage
from services.fake_teacher.bill import Bill
from services.fake_teacher.faults import BEFORE, GARBLED, LOST, NO_MONEY, drawn
from services.fake_teacher.meter import Charge, Meters, anthropic_headers, openai_headers
from services.fake_teacher.wire import WIRES, Asked, Wire, error_body
from services.teachers.script import answer


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the fake teacher behaves. Rates a minute, times in seconds, prices in USD per million tokens."""

    rpm: float | None = None
    tpm: float | None = None
    input_tpm: float | None = None
    output_tpm: float | None = None
    burst_s: float = 1.0
    charge: str = "provider"  # what tokens count: `provider` as each documents, `actual` what was used
    concurrency: int | None = None
    latency_s: float = 0.0
    spread: float = 0.0
    words: tuple[int, int] = (8, 16)
    hidden: int = 0  # input tokens of a system prompt that is added to every call
    thoughts: tuple[int, int] = (0, 0)  # output tokens beside the answer's, which max_tokens does not cover
    faults: dict[str, float] = field(default_factory=dict)  # drawn for each request
    poison: dict[str, float] = field(default_factory=dict)  # drawn from its content, so the same every time
    retry_after_s: float = 0.05  # that faults 429, 503, 529 and slow_down ask to wait
    hang_s: float = 600.0
    status: int = 0
    price: Price = field(default_factory=lambda: Price(0.0, 0.0))
    headers: bool = True
    seed: int = 0


class FakeTeacher:
    """One account."""

    def __init__(self, behaviour: Behaviour, clock: Callable[[], float] = time.time) -> None:
        self.behaviour, self.clock = behaviour, clock
        self.bill = Bill(behaviour.price)
        limits = {
            "requests": behaviour.rpm, "tokens": behaviour.tpm,
            "input": behaviour.input_tpm, "output": behaviour.output_tpm,
        }  # fmt: skip
        self.meters = Meters(limits, behaviour.burst_s, clock())
        self._rng = random.Random(behaviour.seed)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        for path in WIRES:
            app.router.add_post(path, self._serve)
        app.router.add_get("/bill", self._bill)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _bill(self, _: web.Request) -> web.Response:
        return web.json_response(self.bill.shown())

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        self.bill.arrived(key, self.clock())
        try:
            return await self._answer(request, WIRES[request.path])
        finally:
            self.bill.in_flight -= 1

    async def _answer(self, request: web.Request, wire: Wire) -> web.StreamResponse:
        raw = await request.read()
        if self.behaviour.status:
            return self._refuse(wire, self.behaviour.status, "made_up", 0.0)
        try:
            asked = wire.read(json.loads(raw)).checked()
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return self._refuse(wire, 400, "invalid_request", 0.0, f"{type(error).__name__}: {error}")
        poisoned = drawn(self.behaviour.poison, random.Random(f"{self.behaviour.seed} ".encode() + raw))
        fault = poisoned or drawn(self.behaviour.faults, self._rng)
        if fault in BEFORE:
            status, code = NO_MONEY if fault == "quota" and wire.anthropic else BEFORE[fault]
            return self._refuse(wire, status, code, self.behaviour.retry_after_s if status in (429, 503, 529) else 0.0)
        if refused := self._limited(asked, wire):
            return refused
        text, finish, usage = self._text(raw, asked)
        await self._take_time(fault)
        self._count_output(asked, usage, wire)
        self.bill.charge(hashlib.sha256(raw).digest(), usage, fault in LOST, fault in GARBLED)
        return await self._write(request, wire, fault, asked, text, finish, usage)

    def _limited(self, asked: Asked, wire: Wire) -> web.Response | None:
        now = self.clock()
        limit = self.behaviour.concurrency
        if limit is not None and self.bill.in_flight > limit:
            return self._refuse(wire, 429, "rate_limit_exceeded", 0.05)
        charge = self._charge(asked, wire)
        hit = self.meters.admit(charge, now)
        if hit is not None:
            return self._refuse(wire, 429, "rate_limit_exceeded", hit[1], f"limit reached: {hit[0]}")
        self.bill.admitted(charge.tokens or charge.input + charge.output, now)
        return None

    def _charge(self, asked: Asked, wire: Wire) -> Charge:
        """What a request takes before it is answered. OpenAI reserves max_tokens and never gives it back; Anthropic
        counts output as it is produced (both: rate limit pages, read 2026-11-23)."""
        tokens = asked.input_tokens + self.behaviour.hidden
        if wire.anthropic or self.behaviour.charge == "actual":
            return Charge(1.0, tokens, tokens, 0.0)
        return Charge(1.0, tokens + asked.max_tokens, tokens, asked.max_tokens)

    def _count_output(self, asked: Asked, usage: Usage, wire: Wire) -> None:
        if wire.anthropic or self.behaviour.charge == "actual":
            now = self.clock()
            self.meters.take(Charge(0.0, usage.output_tokens, 0.0, usage.output_tokens), now)
            self.bill.seconds.setdefault(int(now), [0, 0, 0])[1] += usage.output_tokens

    def _text(self, raw: bytes, asked: Asked) -> tuple[str, str, Usage]:
        """(text, finish reason, usage): the same for the same request."""
        rng = random.Random(hashlib.sha256(raw).digest())
        words = answer(asked.last, rng, asked.schema, self.behaviour.words).split(" ")
        kept = words[: asked.max_tokens]
        finish = "length" if len(kept) < len(words) else "stop"
        usage = Usage(asked.input_tokens + self.behaviour.hidden, len(kept) + rng.randint(*self.behaviour.thoughts))
        return " ".join(kept), finish, usage

    async def _take_time(self, fault: str) -> None:
        """Log-normal round `latency_s`, which is the median."""
        seconds = self.behaviour.latency_s
        if seconds and self.behaviour.spread:
            seconds *= math.exp(self._rng.gauss(0.0, self.behaviour.spread))
        if fault == "hang":
            seconds = self.behaviour.hang_s
        if seconds:
            await asyncio.sleep(seconds)

    async def _write(
        self, request: web.Request, wire: Wire, fault: str, asked: Asked, text: str, finish: str, usage: Usage
    ) -> web.StreamResponse:
        if fault == "blank":
            asked, text = dataclasses.replace(asked, tool=None), "   "
        body = json.dumps(wire.written(asked, text, finish, usage)).encode()
        headers = self._headers(wire)
        if fault in ("reset", "hang"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "truncated":
            whole = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
            whole.content_type = "application/json"
            await whole.prepare(request)
            await whole.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
            return whole
        if fault == "html":
            return web.Response(text="<html><body>Please log in</body></html>", content_type="text/html")
        if fault == "malformed":
            body = body[: len(body) - 9]
        elif fault == "refusal":
            body = json.dumps(wire.refused(asked, usage)).encode()
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _refuse(self, wire: Wire, status: int, code: str, wait_s: float, message: str = "made up") -> web.Response:
        self.bill.refuse(f"{status} {code}".strip(), self.clock())
        headers = self._headers(wire)
        if wait_s:
            headers["retry-after"] = str(math.ceil(wait_s))
            headers["retry-after-ms"] = f"{wait_s * 1000:.0f}"
        body = error_body(wire.anthropic, status, code, message)
        return web.Response(body=body, status=status, content_type="application/json", headers=headers)

    def _headers(self, wire: Wire) -> dict[str, str]:
        if not self.behaviour.headers:
            return {}
        now = self.clock()
        for meter in self.meters.meters.values():
            meter.refill(now)
        if wire.anthropic:
            return anthropic_headers(self.meters, datetime.fromtimestamp(now, UTC))
        return openai_headers(self.meters)


async def serve(
    behaviour: Behaviour, port: int, ready: Callable[[int], None], stop_after_s: float | None, stopped: asyncio.Event
) -> Bill:
    """Serve on 127.0.0.1 until `stopped` is set or `stop_after_s` seconds have passed; `ready` gets the port."""
    teacher = FakeTeacher(behaviour)
    runner = web.AppRunner(teacher.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        ready(runner.addresses[0][1])
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopped.wait(), stop_after_s)
    finally:
        await runner.cleanup()
    return teacher.bill
