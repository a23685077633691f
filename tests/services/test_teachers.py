"""What a teacher says, and what is made of it. Wire shapes as providers and servers really send them."""

import asyncio
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from schemas.call import Call, Message, Reply, Sampling, VerdictKind
from schemas.errors import SpecError
from schemas.lane import Teacher
from schemas.money import Usage
from services.teachers.adapter import DIALECTS, decode, dialect_of, open_adapter
from services.teachers.chat import RATE_HEADERS, Chat
from services.teachers.credentials import credential_id, lane_key, resolve_key
from services.teachers.http import MOST_BODY, plain
from services.teachers.scripted import ScriptedAdapter
from services.teachers.verdict import classify, hint_of

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
        (429, {"code": "slow_down"}, VerdictKind.RAMP_LIMITED),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (429, {"code": "credit_balance_exhausted", "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (429, {"code": None, "type": "insufficient_quota"}, VerdictKind.OUT_OF_MONEY),
        (402, {}, VerdictKind.OUT_OF_MONEY),
        (401, {"code": "invalid_api_key"}, VerdictKind.AUTH),
        (403, {}, VerdictKind.AUTH),
        (403, {"code": "content_filter"}, VerdictKind.REFUSED),
        (404, {"code": "model_not_found"}, VerdictKind.MISDIRECTED),
        (307, {}, VerdictKind.MISDIRECTED),
        (400, {"code": "context_length_exceeded"}, VerdictKind.TOO_LARGE),
        (400, {"code": "invalid_value"}, VerdictKind.BAD_REQUEST),
        (500, {}, VerdictKind.TRANSIENT),
        (503, {"code": "server_is_overloaded"}, VerdictKind.OVERLOADED),
        (504, {"type": "timeout_error"}, VerdictKind.TIMEOUT),
        (502, {}, VerdictKind.IN_DOUBT),
        (520, {}, VerdictKind.IN_DOUBT),
        (522, {}, VerdictKind.TRANSIENT),
        (400, {"code": "content_policy_violation"}, VerdictKind.REFUSED),
        (413, {"type": "request_too_large"}, VerdictKind.TOO_LARGE),
        (400, {"code": 400, "type": "exceed_context_size_error"}, VerdictKind.TOO_LARGE),
        (529, {"type": "overloaded_error"}, VerdictKind.OVERLOADED),
        (429, {"type": "rate_limit_error"}, VerdictKind.RATE_LIMITED),
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
            VerdictKind.OUT_OF_MONEY,
        ),
        (429, {"type": "rate_limit_error", "details": {"error_code": "ramp_limit_exceeded"}}, VerdictKind.RAMP_LIMITED),
        (402, {"type": "billing_error"}, VerdictKind.OUT_OF_MONEY),
        (400, {"type": "invalid_request_error", "details": {"error_code": "organization_on_hold"}}, VerdictKind.AUTH),
    ],
)
def test_an_answer_is_judged_by_status_and_code(status: int, error: dict[str, Any], kind: VerdictKind) -> None:
    assert classify(status, json.dumps({"error": error}).encode(), {}).kind is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "86400"}, 3_600.0),
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
    answer = Chat.decode(LLAMA)
    assert (answer.text, answer.finish) == ("The sky", "length")
    assert Chat.usage(LLAMA) == Usage(39, 2)


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
    answer = Chat.decode(body)
    assert answer.text is None
    assert answer.problem
    assert Chat.usage(body) is None


def test_text_that_utf_8_cannot_hold_is_made_storable() -> None:
    body = b'{"choices":[{"message":{"content":"a\\ud800b"},"finish_reason":"stop"}]}'
    assert Chat.decode(body).text == "a?b"


def test_an_error_code_that_utf_8_cannot_hold_is_made_storable() -> None:
    body = b'{"error":{"code":"bad \\ud83d","message":"x"}}'
    assert classify(400, body, {}).detail == "HTTP 400 bad ?"


async def served(handler: Any, teacher: dict[str, Any], call: Call = CALL) -> tuple[Reply, list[dict[str, Any]]]:
    """One call against a real server on loopback: the reply, and the bodies and headers that arrived."""
    seen: list[dict[str, Any]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        seen.append({"body": await request.json(), "headers": dict(request.headers)})
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application()
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
        app.router.add_post(path, record)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    fields: dict[str, Any] = {"provider": "openai", "model": "m", "free": True, **teacher}
    path = "" if fields["provider"] == "anthropic" else "/v1"
    adapter = open_adapter(Teacher(base_url=f"http://127.0.0.1:{port}{path}", **fields))
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


async def drip(request: web.Request) -> web.StreamResponse:
    """A byte now and then, for ever: no single read ever times out."""
    response = web.StreamResponse(headers={"content-length": "100000"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


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
        (hang, VerdictKind.TIMEOUT), (drip, VerdictKind.TIMEOUT),
    ],
)  # fmt: skip
def test_a_fault_on_the_wire_becomes_a_verdict_and_one_request(handler: Any, kind: VerdictKind) -> None:
    reply, seen = asyncio.run(served(handler, {"timeout_s": 2}))
    assert reply.verdict.kind is kind
    assert len(seen) == 1


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_page_or_a_torn_body_with_status_200_is_no_answer_and_may_be_paid_for(tmp_path: Path, provider: str) -> None:
    (tmp_path / "key").write_text("short-key")

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Log in, short-key</html>", content_type="text/html")

    async def torn(_: web.Request) -> web.Response:
        return web.Response(body=LLAMA[:-9], content_type="application/json")

    for handler in (page, torn):
        reply, _ = asyncio.run(served(handler, {"provider": provider, "api_key": f"file:{tmp_path / 'key'}"}))
        assert reply.verdict.kind is VerdictKind.MALFORMED and reply.verdict.kind.may_be_paid and reply.body
        assert "not JSON" in reply.verdict.detail and b"short-key" not in pickle.dumps(reply)


def test_an_answer_of_a_server_that_counts_no_tokens_is_one() -> None:
    async def uncounted(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "Four"}, "finish_reason": "stop"}]})

    reply, _ = asyncio.run(served(uncounted, {}))
    assert reply.verdict.kind is VerdictKind.ANSWERED and reply.usage is None


def test_a_server_that_is_not_there_is_unreachable_and_costs_nothing() -> None:
    async def send() -> Reply:
        adapter = open_adapter(Teacher(provider="openai", model="m", free=True, base_url="http://127.0.0.1:9/v1"))
        try:
            return await adapter.send(CALL)
        finally:
            await adapter.close()

    assert asyncio.run(send()).verdict.kind is VerdictKind.UNREACHABLE


@pytest.mark.parametrize("status", [400, 401, 200])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_key_reaches_the_server_and_no_reply_of_any_kind(tmp_path: Path, provider: str, status: int) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-canary-9\n")

    async def refuse(_: web.Request) -> web.Response:
        quoted = {"error": {"code": "invalid_api_key: sk-canary-9", "message": "bad sk-canary-9"}}
        return web.json_response(quoted, status=status)

    reply, seen = asyncio.run(served(refuse, {"provider": provider, "api_key": f"file:{key_file}"}))
    assert seen[0]["headers"]["Authorization"] == "Bearer sk-canary-9"
    assert b"canary" not in pickle.dumps(reply)
    assert "[key]" in reply.verdict.detail


@pytest.mark.parametrize(
    "date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2027 00:00:00 +999999999999999999999"]
)
def test_a_date_beyond_all_time_asks_for_no_wait(date: str) -> None:
    assert classify(429, b"", {"retry-after": date, "date": date}).retry_after is None


def test_an_error_code_is_shown_in_a_terminal_without_its_control_characters() -> None:
    assert classify(401, b'{"error":{"code":"\\u001b[2J\\nX"}}', {}).detail == "HTTP 401 ?[2J?X"


def test_a_provider_s_own_address_written_out_is_the_provider() -> None:
    for provider, model, url in (
        ("openai", "gpt-4.1-mini", "https://api.openai.com/v1/"), ("anthropic", "claude-haiku-4-5", "https://api.anthropic.com")
    ):  # fmt: skip
        plain = Teacher.model_validate({"provider": provider, "model": model})
        assert Teacher.model_validate({"provider": provider, "model": model, "base_url": url}) == plain


def test_one_machine_under_two_names_is_one_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "sk-1")
    ids = {
        credential_id(
            Teacher(provider="openai", model="m", free=True, base_url=f"http://{host}:9/v1", api_key="env:K"), None
        )
        for host in ("localhost", "127.0.0.1", "[::1]")
    }
    assert len(ids) == 1


def test_a_seed_of_null_is_not_sent() -> None:
    chat = Chat(Teacher(provider="openai", model="m", free=True, base_url="http://127.0.0.1:9/v1"))
    assert chat.request(CALL._replace(sampling=Sampling(0.0, 8, 3)))["seed"] == 3
    assert "seed" not in chat.request(CALL._replace(sampling=Sampling(0.0, 8, None)))


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
    assert "So the answer is" in (decode("chat", first.body).text or "")


# As the providers' references and the installed packages' types show them (read 2026-11-23).
RESPONSE = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m", "incomplete_details": None,
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Four", "annotations": []}]},
    ],
    "usage": {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 70,
              "output_tokens_details": {"reasoning_tokens": 64}, "total_tokens": 81},
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
    "content": [{"type": "thinking", "thinking": "2+2", "signature": "x"}, {"type": "text", "text": "Four"}],
    "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {"input_tokens": 9, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 1, "output_tokens": 5},
}  # fmt: skip


def body(shape: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**shape, **changes}).encode()


def test_a_response_and_a_message_are_decoded_with_all_that_is_billed() -> None:
    assert (decode("responses", body(RESPONSE)).text, decode("messages", body(MESSAGE)).text) == ("Four", "Four")
    openai, anthropic = (DIALECTS[name](Teacher(provider="scripted")) for name in ("responses", "messages"))
    assert openai.usage(body(RESPONSE)) == Usage(11, 70)
    assert anthropic.usage(body(MESSAGE)) == Usage(12, 5)


@pytest.mark.parametrize(
    ("dialect", "raw", "finish", "problem"),
    [
        ("responses", body(RESPONSE, status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
         "length", ""),
        ("responses", body(RESPONSE, incomplete_details={"reason": "content_filter"}), "content_filter", "refused"),
        ("responses", body(RESPONSE, output=[{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]),
         "stop", "refused: no"),
        ("responses", body(RESPONSE, output=[]), "stop", "no text"),
        ("responses", b'{"error": {}}', "", "not a response"),
        ("responses", b"<html>", "", "not JSON"),
        ("messages", body(MESSAGE, stop_reason="max_tokens"), "length", ""),
        ("messages", body(MESSAGE, stop_reason="model_context_window_exceeded"), "length", ""),
        ("messages", body(MESSAGE, stop_reason="refusal", stop_details={"category": "frontier_llm"}, content=[]),
         "refusal", "refused: frontier_llm"),
        ("messages", body(MESSAGE, content=None), "", "not a message"),
        ("messages", b"[]", "", "not a message"),
        ("messages", b"<html>", "", "not JSON"),
    ],
)  # fmt: skip
def test_an_answer_that_is_cut_refused_or_no_answer_says_so(
    dialect: str, raw: bytes, finish: str, problem: str
) -> None:
    answer = decode(dialect, raw)
    assert answer.finish == finish
    assert problem in answer.problem and (answer.text is None) == bool(problem)


def test_responses_and_messages_ask_as_their_providers_want_it() -> None:
    call = Call("r", (Message("system", "short"), Message("user", "hi")), Sampling(0.5, 32, 3))
    _, seen = asyncio.run(served(good, {"api": "responses"}, call))
    assert seen[0]["body"] == {
        "model": "m", "input": [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}],
        "max_output_tokens": 32, "store": False, "temperature": 0.5,
    }  # fmt: skip
    _, seen = asyncio.run(served(good, {"provider": "anthropic"}, call))
    assert seen[0]["body"] == {
        "model": "m", "max_tokens": 32, "system": "short", "temperature": 0.5,
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    assert seen[0]["headers"]["x-api-key"] == "none" and seen[0]["headers"]["anthropic-version"]
    own = DIALECTS["messages"](Teacher(provider="anthropic", model="claude-haiku-4-5"))
    assert "temperature" not in own.request(call)  # current models answer 400 to it


def test_thoughts_that_are_counted_in_the_total_alone_are_output() -> None:
    """As xAI's answers, and those of gateways before Gemini, count them."""
    told = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}
    told["completion_tokens_details"] = {"reasoning_tokens": 94}  # type: ignore[assignment]
    assert Chat.usage(json.dumps({"usage": told}).encode()) == Usage(32, 103)
    for usual in ({"total_tokens": 41}, {"total_tokens": None}, {"total_tokens": 0}, {}):
        whole = {"prompt_tokens": 32, "completion_tokens": 9, **usual}
        assert Chat.usage(json.dumps({"usage": whole}).encode()) == Usage(32, 9)
    assert Chat.usage(b'{"usage": {"prompt_tokens": 1000000000000000000, "completion_tokens": 1}}') is None


def test_limits_are_read_from_the_headers_of_both_providers_and_nonsense_is_not() -> None:
    names = Chat(Teacher(provider="scripted")).rate_headers
    sane = {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499"}
    hint = hint_of(sane, names)
    assert hint is not None and hint.limits == {"requests": 500.0} and hint.remaining == {"requests": 499.0}
    for nonsense in ({}, {"x-ratelimit-limit-requests": "-1"}, {"x-ratelimit-limit-requests": "many"},
                     {"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}):  # fmt: skip
        assert hint_of(nonsense, names) is None
    odd = hint_of({**sane, "x-ratelimit-remaining-requests": "-1"}, names)
    assert odd is not None and odd.remaining == {}


def test_of_the_limits_of_an_organisation_and_of_its_project_the_smaller_one_holds() -> None:
    whole = {"x-ratelimit-limit-tokens": "2000000", "x-ratelimit-remaining-tokens": "1000"}
    part = {"x-ratelimit-limit-project-tokens": "200000", "x-ratelimit-remaining-project-tokens": "150000"}
    hint = hint_of({**whole, **part}, RATE_HEADERS)
    assert hint is not None and (hint.limits, hint.remaining) == ({"tokens": 200_000.0}, {"tokens": 1_000.0})


def test_lanes_of_one_account_share_limits_and_their_name_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "sk-canary-1")
    monkeypatch.setenv("B", "sk-canary-1")
    monkeypatch.setenv("C", "sk-canary-2")
    lanes = [Teacher(provider="openai", model="gpt-4.1", api_key=f"env:{name}") for name in "ABC"]
    one, same, other = (credential_id(lane, None) for lane in lanes)
    assert one == same != other
    assert "canary" not in one
    assert credential_id(lanes[0].model_copy(update={"model": "gpt-4o"}), None) != one
    assert [dialect_of(lane) for lane in lanes] == ["chat"] * 3


def test_an_error_that_a_gateway_sends_with_status_200_is_no_answer() -> None:
    assert classify(200, b'{"error": {"code": 429, "message": "slow"}}', {}).kind is VerdictKind.RATE_LIMITED
    assert classify(200, b'{"error": {"message": "upstream"}}', {}).kind is VerdictKind.TRANSIENT
    assert classify(200, b'{"error": null, "choices": []}', {}).kind is VerdictKind.ANSWERED
    overloaded = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    assert classify(200, overloaded, {}).kind is VerdictKind.OVERLOADED
    failed = b'{"id":"r","status":"failed","error":{"code":"server_error","message":"no"},"output":[]}'
    assert classify(200, failed, {}).kind is VerdictKind.TRANSIENT
    quoted = json.dumps({"choices": [{"message": {"content": '{"error": "an example"}'}}], "error": {"code": 1}})
    assert classify(200, quoted.encode(), {}).kind is VerdictKind.ANSWERED


def test_a_limit_of_ones_own_is_out_of_money_and_a_firewalls_page_says_nothing_of_the_key() -> None:
    said = {
        "type": "invalid_request_error",
        "message": "You have reached your specified API usage limits. ...",
    }
    body = json.dumps({"type": "error", "error": said}).encode()
    assert classify(400, body, {}).kind is VerdictKind.OUT_OF_MONEY
    said["message"] = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing ..."
    empty = json.dumps({"type": "error", "error": said}).encode()
    assert classify(400, empty, {}).kind is VerdictKind.OUT_OF_MONEY
    assert classify(403, b"<html>blocked</html>", {}).kind is VerdictKind.BAD_REQUEST
    assert classify(403, b"", {}).kind is VerdictKind.AUTH


def test_a_temperature_is_not_sent_to_openais_models_that_refuse_it() -> None:
    for api in ("chat", "responses"):
        for model, base_url, sent in (
            ("gpt-5-mini", None, False), ("o4-mini", None, False), ("gpt-4.1", None, True),
            ("gpt-5-mini", "http://127.0.0.1:1/v1", True),
        ):  # fmt: skip
            teacher = Teacher.model_validate(
                {"provider": "openai", "model": model, "api": api, "base_url": base_url, "free": True}
            )
            assert ("temperature" in DIALECTS[api](teacher).request(CALL)) == sent


def test_text_that_comes_in_parts_is_one_text() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "It is "}, {"type": "text", "text": "7."}]
    body = json.dumps({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}).encode()
    assert decode("chat", body).text == "It is 7."
    assert decode("chat", b'{"choices":[{"message":{"content":["odd"]}}]}').text is None


def test_a_compressed_body_is_read_and_a_damaged_one_kept() -> None:
    assert plain(gzip.compress(b"{}"), "gzip") == plain(zlib.compress(b"{}"), "deflate") == plain(b"{}", "") == b"{}"
    assert plain(b"nope", "gzip") == b"nope"
    assert plain(gzip.compress(b"[1,") + gzip.compress(b"2]"), "x-gzip") == b"[1,2]"
    bomb = gzip.compress(bytes(MOST_BODY + 1))
    assert plain(bomb, "gzip") == bomb


def test_a_date_in_retry_after_is_read_by_the_servers_own_clock() -> None:
    headers = {"date": "Wed, 25 Nov 2026 10:00:00 GMT", "retry-after": "Wed, 25 Nov 2026 10:00:07 GMT"}
    assert classify(429, b"", headers).retry_after == 7
    assert classify(429, b"", {"retry-after": headers["retry-after"]}).retry_after is None
