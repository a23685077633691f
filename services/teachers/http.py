"""Send a call with a provider's own package and turn whatever happens into a reply.

The package's client makes the headers (authentication, version, agent) and the connection pool; requests go out through
its HTTP client as bytes, and raw bytes come back, which are journalled before anything reads them. Measured a call:
0.5 ms CPU so, 1.0 ms through the client's `post`, 2.7 ms through `chat.completions.create`. It also leaves no place for
the packages' own retries, which belong to Limbeck.
"""

import asyncio
import json
import os
import socket
import time
from typing import Any, NamedTuple

import aiohttp
import anyio
import httpx2

from schemas.call import Call, RateHint, Reply, Verdict, VerdictKind
from schemas.lane import Teacher
from services.teachers.credentials import lane_key
from services.teachers.dialect import Dialect
from services.teachers.verdict import classify, hint_of

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
CONNECT_S = 10.0
UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ConnectionRefusedError, socket.gaierror)
HINT_EVERY_S = 0.05  # headers of one answer in so many seconds are read: they say the same
CUSTOM_HEADERS = ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS")  # would be sent along with every call


class Sdk(NamedTuple):
    """What a provider's package gave: its HTTP client, where to post, and the headers of every call."""

    http: httpx2.AsyncClient
    url: httpx2.URL
    headers: httpx2.Headers


def _transport(kind: Any, teacher: Teacher) -> Any:
    """The package's aiohttp client. Redirects are not followed: one would carry the prompt elsewhere."""
    # 0 is aiohttp's "no limit"; None leaves its default of 100, at which calls would wait unseen by the governor.
    limits = httpx2.Limits(max_connections=0, max_keepalive_connections=None)
    timeout = httpx2.Timeout(teacher.timeout_s, connect=min(CONNECT_S, teacher.timeout_s))
    return kind(follow_redirects=False, trust_env=False, limits=limits, timeout=timeout)


def _sdk(client: Any, http: Any, path: str, **extra: str) -> Sdk:
    made = {**client.default_headers, **client.auth_headers, **extra, "content-type": "application/json"}
    headers = httpx2.Headers({name: value for name, value in made.items() if isinstance(value, str)})
    return Sdk(http, httpx2.URL(str(client.base_url).rstrip("/") + path), headers)


def _forget_environment(place: str | None) -> None:
    """Variables that the packages would turn into headers, and that a server elsewhere has no business to see."""
    for name in CUSTOM_HEADERS if place is None else (*CUSTOM_HEADERS, "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        os.environ.pop(name, None)


def openai_sdk(teacher: Teacher, base_url: str | None, path: str) -> Sdk:
    import openai

    _forget_environment(base_url or teacher.base_url)
    http = _transport(openai.DefaultAioHttpClient, teacher)
    place = base_url or teacher.base_url or OPENAI_URL
    client = openai.AsyncOpenAI(api_key=lane_key(teacher), base_url=place, max_retries=0, http_client=http)
    return _sdk(client, http, path)


def anthropic_sdk(teacher: Teacher, base_url: str | None, path: str) -> Sdk:
    import anthropic

    key, place = lane_key(teacher), base_url or teacher.base_url
    _forget_environment(place)
    http = _transport(anthropic.DefaultAioHttpClient, teacher)
    client = anthropic.AsyncAnthropic(api_key=key, base_url=place or ANTHROPIC_URL, max_retries=0, http_client=http)
    # The SDK sends a bearer token since 1.0; compatible gateways read x-api-key.
    return _sdk(client, http, path, **({"x-api-key": key} if place else {}))


class HttpAdapter:
    """One lane's connection pool."""

    def __init__(self, dialect: Dialect, sdk: Sdk, timeout_s: float) -> None:
        self._dialect, self._sdk, self._timeout_s = dialect, sdk, timeout_s
        self._hinted_at = 0.0

    async def send(self, call: Call) -> Reply:
        """Send once. Every failure becomes a verdict; the transport's errors hold the key, so none leaves here."""
        # The transport's timeouts are a read's; a body that drips for ever needs a limit of its own.
        with anyio.move_on_after(self._timeout_s) as limit:
            return await self._send(call)
        assert limit.cancelled_caught
        return Reply(Verdict(VerdictKind.TIMEOUT, f"no whole answer in {self._timeout_s:g} s"))

    async def _send(self, call: Call) -> Reply:
        sdk = self._sdk
        content = json.dumps(self._dialect.request(call), separators=(",", ":")).encode()
        try:
            response = await sdk.http.send(httpx2.Request("POST", sdk.url, headers=sdk.headers, content=content))
        except (TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            return Reply(_transport_verdict(error))
        status, body, headers = response.status_code, response.content, response.headers
        verdict = classify(status, body, headers)
        if verdict.kind is not VerdictKind.ANSWERED:
            return Reply(verdict, status, body, hint=self._hint(headers, always=True))
        return Reply(verdict, status, body, self._dialect.usage(body), self._hint(headers))

    def _hint(self, headers: httpx2.Headers, always: bool = False) -> RateHint | None:
        now = time.monotonic()
        if not always and now - self._hinted_at < HINT_EVERY_S:
            return None
        self._hinted_at = now
        return hint_of(headers, self._dialect.rate_headers)

    async def close(self) -> None:
        await self._sdk.http.aclose()


def _transport_verdict(error: BaseException) -> Verdict:
    """Whether the request can have reached the teacher. If it can, it may have been paid for.

    The innermost error tells: between it and the package's own, a server that hangs up counts as a connect timeout.
    """
    innermost, unsent = error, isinstance(error, UNSENT)
    while (cause := innermost.__cause__ or innermost.__context__) is not None:
        innermost = cause
        unsent = unsent or isinstance(cause, UNSENT)
    if unsent:
        return Verdict(VerdictKind.UNREACHABLE, type(innermost).__name__)
    late = isinstance(innermost, asyncio.TimeoutError)
    return Verdict(VerdictKind.TIMEOUT if late else VerdictKind.IN_DOUBT, type(innermost).__name__)
