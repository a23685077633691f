"""OpenAI Chat Completions, spoken by OpenAI and every compatible server."""

import json
from typing import Any

from schemas.call import Answer, Call, wire_messages
from schemas.lane import Teacher
from schemas.money import Usage
from services.teachers.dialect import NAME, counted, is_strict, parsed, storable

RATE_HEADERS = {name: (f"x-ratelimit-limit-{name}", f"x-ratelimit-remaining-{name}") for name in ("requests", "tokens")}


class Chat:
    """`POST /chat/completions`."""

    name = "chat"
    path = "/chat/completions"
    rate_headers = RATE_HEADERS

    def __init__(self, teacher: Teacher) -> None:
        self._model = teacher.model
        # OpenAI's newer models refuse max_tokens; compatible servers know nothing else.
        own = teacher.provider == "openai" and teacher.base_url is None
        self._max_tokens = "max_completion_tokens" if own else "max_tokens"

    def request(self, call: Call) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": wire_messages(call.messages),
            self._max_tokens: call.sampling.max_tokens,
            "seed": call.sampling.seed + call.sample,
        }
        if call.sampling.temperature is not None:
            body["temperature"] = call.sampling.temperature
        if call.schema is not None:
            schema = json.loads(call.schema)
            form = {"name": NAME, "strict": is_strict(schema), "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    @staticmethod
    def usage(body: bytes) -> Usage | None:
        return counted(parsed(body), "prompt_tokens", "completion_tokens")

    @staticmethod
    def decode(body: bytes) -> Answer:
        found = parsed(body)
        if found is None:
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
        return Answer(storable(text), finish)
