"""What a teacher says, and what is made of it. Wire shapes as providers and servers really send them."""

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from schemas.call import Call, Message, Reply, Sampling, VerdictKind
from schemas.errors import SpecError
from schemas.lane import Teacher
from schemas.money import Usage
from services.teachers.chat import ChatAdapter, decode, usage_of
from services.teachers.credentials import lane_key, resolve_key
from services.teachers.scripted import ScriptedAdapter
from services.teachers.verdict import classify

CALL = Call("r", (Message("user", "hi"),), Sampling(0.5, 32, 3))
LLAMA = (
    b'{"choices":[{"finish_reason":"length","index":0,"message":{"role":"assistant","content":"The sky"}}],'
    b'"created":1795491179,"model":"m.gguf","object":"chat.completion",'
    b'"usage":{"completion_tokens":2,"prompt_tokens":39,"total_tokens":41}}'
)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (200, {}, VerdictKind.ANSWERED),
        (429, {"code": "rate_limit_exceeded", "type": "requests"}, VerdictKind.RATE_LIMITED),
        (429, {"code": "slow_down"}, VerdictKind.RATE_LIMITED),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (429, {"code": "credit_balance_exhausted", "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (429, {"code": None, "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (402, {}, VerdictKind.OUT_OF_MONEY),
        (401, {"code": "invalid_api_key"}, VerdictKind.AUTH),
        (403, {}, VerdictKind.AUTH),
        (404, {"code": "model_not_found"}, VerdictKind.MISDIRECTED),
        (307, {}, VerdictKind.MISDIRECTED),
        (400, {"code": "context_length_exceeded"}, VerdictKind.BAD_REQUEST),
        (500, {}, VerdictKind.TRANSIENT),
        (503, {"code": "server_is_overloaded"}, VerdictKind.TRANSIENT),
    ],
)
def test_an_answer_is_judged_by_status_and_code(status: int, error: dict[str, Any], kind: VerdictKind) -> None:
    assert classify(status, json.dumps({"error": error}).encode(), {}).kind is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "86400"}, 120.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None), ({"retry-after": "-1"}, None), ({}, None),
        ({"retry-after": "nan"}, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_and_bounded(headers: dict[str, str], seconds: float | None) -> None:
    assert classify(429, b"{}", headers).retry_after == seconds


def test_a_verdict_repeats_nothing_that_the_server_quoted() -> None:
    body = json.dumps(
        {"error": {"code": "invalid_api_key", "message": "Incorrect key sk-canary: prompt text"}}
    ).encode()
    detail = classify(401, body, {}).detail
    assert "canary" not in detail and "prompt" not in detail


def test_a_llama_cpp_answer_is_decoded_with_its_usage() -> None:
    answer = decode(LLAMA)
    assert (answer.text, answer.finish) == ("The sky", "length")
    assert usage_of(LLAMA) == Usage(39, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>login</html>", b"", b"[]", b"null", b'{"error":{"message":"no"}}', b'{"choices":[]}',
        b'{"choices":null}', b'{"choices":[{"message":null}]}', b'{"choices":[{"message":{"content":["a"]}}]}',
        b'{"choices":[{"message":{"content":null,"refusal":"I cannot"}}]}', b"\xff\xfe", b'{"choices":[3]}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"content_filter"}]}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_answer_is_described_and_never_raises(body: bytes) -> None:
    answer = decode(body)
    assert answer.text is None
    assert answer.problem
    assert usage_of(body) is None


def test_text_that_utf_8_cannot_hold_is_made_storable() -> None:
    body = b'{"choices":[{"message":{"content":"a\\ud800b"},"finish_reason":"stop"}]}'
    assert decode(body).text == "a?b"


async def served(handler: Any, teacher: dict[str, Any], call: Call = CALL) -> tuple[Reply, list[dict[str, Any]]]:
    """One call against a real server on loopback: the reply, and the bodies and headers that arrived."""
    seen: list[dict[str, Any]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        seen.append({"body": await request.json(), "headers": dict(request.headers)})
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", record)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    lane = Teacher(provider="openai", model="m", free=True, base_url=f"http://127.0.0.1:{port}/v1", **teacher)
    adapter = ChatAdapter(lane)
    try:
        return await adapter.send(call), seen
    finally:
        await adapter.close()
        await runner.cleanup()


async def good(_: web.Request) -> web.Response:
    return web.Response(body=LLAMA, content_type="application/json")


async def redirect(_: web.Request) -> web.Response:
    return web.Response(status=307, headers={"location": "http://127.0.0.1:9/elsewhere"})


async def reset(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_short(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "900"})
    await response.prepare(request)
    await response.write(LLAMA[:40])
    assert request.transport is not None
    request.transport.abort()
    return response


async def hang(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    return web.Response()


def test_the_raw_bytes_come_back_and_the_request_is_what_compatible_servers_know() -> None:
    reply, seen = asyncio.run(served(good, {}))
    assert reply.body == LLAMA
    assert reply.usage == Usage(39, 2)
    assert seen[0]["body"] == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "max_tokens": 32, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (redirect, VerdictKind.MISDIRECTED), (reset, VerdictKind.IN_DOUBT), (cut_short, VerdictKind.IN_DOUBT),
        (hang, VerdictKind.IN_DOUBT),
    ],
)  # fmt: skip
def test_a_fault_on_the_wire_becomes_a_verdict_and_one_request(handler: Any, kind: VerdictKind) -> None:
    reply, seen = asyncio.run(served(handler, {"timeout_s": 0.5}))
    assert reply.verdict.kind is kind
    assert len(seen) == 1


def test_a_server_that_is_not_there_is_unreachable_and_costs_nothing() -> None:
    async def send() -> Reply:
        adapter = ChatAdapter(Teacher(provider="openai", model="m", free=True, base_url="http://127.0.0.1:9/v1"))
        try:
            return await adapter.send(CALL)
        finally:
            await adapter.close()

    assert asyncio.run(send()).verdict.kind is VerdictKind.UNREACHABLE


def test_a_key_reaches_the_server_and_no_reply_of_any_kind(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-canary-9\n")

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"code": "invalid_api_key", "message": "bad sk-canary-9"}}, status=401)

    reply, seen = asyncio.run(served(refuse, {"api_key": f"file:{key_file}"}))
    assert seen[0]["headers"]["Authorization"] == "Bearer sk-canary-9"
    assert b"canary" not in pickle.dumps(reply.verdict)


def test_a_key_reference_that_does_not_resolve_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SpecError, match="env:OPENAI_API_KEY"):
        lane_key(Teacher(provider="openai", model="gpt", free=True))
    with pytest.raises(SpecError, match="file:"):
        resolve_key(f"file:{tmp_path}/absent")


def test_a_scripted_teacher_says_the_same_thing_every_time() -> None:
    first, again = (asyncio.run(ScriptedAdapter("s").send(CALL)) for _ in range(2))
    other = asyncio.run(ScriptedAdapter("s").send(Call("r", (Message("user", "ho"),), CALL.sampling)))
    assert first.body == again.body != other.body
    assert "So the answer is" in (decode(first.body).text or "")
