"""OpenAI Chat Completions, spoken by OpenAI and every compatible server, through the `openai` package.

Uses the SDK's low-level `post`: measured at 1.1 ms CPU a call, against 2.7 ms for `chat.completions.create`, and it
keeps the raw bytes, which are journalled before anything reads them. Retries belong to Limbeck, so the SDK has none.
"""

import json
from typing import Any

import aiohttp
import httpx2
import openai

from schemas.call import Answer, Call, Reply, Verdict, VerdictKind, wire_messages
from schemas.lane import Teacher
from schemas.money import Usage
from services.teachers.credentials import lane_key
from services.teachers.verdict import classify

OPENAI_URL = "https://api.openai.com/v1"


class ChatAdapter:
    """One lane's connection pool. Redirects are not followed: one would carry the prompt elsewhere."""

    def __init__(self, teacher: Teacher, base_url: str | None = None) -> None:
        url = base_url or teacher.base_url
        self._model = teacher.model
        # OpenAI's newer models refuse max_tokens; compatible servers know nothing else.
        self._max_tokens_name = "max_tokens" if url else "max_completion_tokens"
        self._client = openai.AsyncOpenAI(
            api_key=lane_key(teacher),
            base_url=url or OPENAI_URL,
            max_retries=0,
            timeout=httpx2.Timeout(teacher.timeout_s, connect=min(10.0, teacher.timeout_s)),
            http_client=openai.DefaultAioHttpClient(follow_redirects=False, trust_env=False),
        )

    def request(self, call: Call) -> dict[str, Any]:
        """The JSON body of a call."""
        return {
            "model": self._model,
            "messages": wire_messages(call.messages),
            "temperature": call.sampling.temperature,
            self._max_tokens_name: call.sampling.max_tokens,
            "seed": call.sampling.seed + call.sample,
        }

    async def send(self, call: Call) -> Reply:
        """Send once. Every failure becomes a verdict; SDK errors hold the key, so none leaves this method."""
        try:
            response = await self._client.post("/chat/completions", body=self.request(call), cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            body = error.response.content
            return Reply(classify(error.status_code, body, error.response.headers), error.status_code, body)
        except openai.APIConnectionError as error:
            return Reply(_transport_verdict(error))
        except httpx2.HTTPError as error:
            # A body that ends early is raised by the transport while it is read, outside the SDK's net.
            return Reply(Verdict(VerdictKind.IN_DOUBT, type(error).__name__))
        body = response.content
        verdict = classify(response.status_code, body, response.headers)
        return Reply(verdict, response.status_code, body, usage_of(body))

    async def close(self) -> None:
        await self._client.close()


def _transport_verdict(error: BaseException) -> Verdict:
    """Whether the request can have reached the teacher. If it can, it may have been paid for."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError):
            return Verdict(VerdictKind.UNREACHABLE, type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return Verdict(VerdictKind.IN_DOUBT, type(error.__cause__ or error).__name__)


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def usage_of(body: bytes) -> Usage | None:
    """Tokens that the teacher counted, or None where it does not say; the reservation then stands."""
    try:
        usage = json.loads(body).get("usage") or {}
        asked, given = (
            _whole_number(usage.get("prompt_tokens")),
            _whole_number(usage.get("completion_tokens")),
        )
    except (ValueError, AttributeError):
        return None
    return None if asked is None or given is None else Usage(asked, given)


def decode(body: bytes) -> Answer:
    """The text of a body, or what is wrong with it. Never raises: a paid answer is kept whatever it holds."""
    try:
        found = json.loads(body)
    except ValueError:
        return Answer(None, problem="the body is not JSON")
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = str(choice.get("finish_reason") or "")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer(None, problem="the body is not a chat completion")
    if refusal or finish == "content_filter":
        return Answer(None, finish, f"refused: {str(refusal or finish)[:200]}")
    if not isinstance(text, str):
        return Answer(None, finish, "the message has no text")
    # JSON can hold lone surrogates, UTF-8 and parquet cannot.
    return Answer(text if text.isascii() else text.encode("utf-8", "replace").decode(), finish)
