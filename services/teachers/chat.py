"""OpenAI Chat Completions, spoken by OpenAI and every compatible server."""

import json
import re
from typing import Any

from schemas.call import Answer, Call, wire_messages
from schemas.lane import PROVIDERS, Teacher
from schemas.money import Usage
from schemas.text import storable
from services.admission.charging import Charging
from services.teachers.credentials import lane_key
from services.teachers.dialect import NAME, counted, foreign, is_strict, parsed
from services.teachers.sdk import Sdk, forget_environment, taken_from
from services.teachers.verdict import RateHeaders

REASONING = re.compile(r"(gpt-5|o\d)")  # OpenAI's models of these names answer 400 to any temperature but their own
RATE_HEADERS: RateHeaders = {
    ours: [(f"x-ratelimit-limit-{name}", f"x-ratelimit-remaining-{name}") for name in wire]
    for ours, wire in {"requests": ["requests"], "tokens": ["tokens", "project-tokens"]}.items()
}


def takes_temperature(teacher: Teacher) -> bool:
    """Whether a lane of OpenAI's dialects may be sent a temperature."""
    return teacher.base_url is not None or REASONING.match(teacher.model) is None


def openai_sdk(teacher: Teacher, base_url: str | None, path: str) -> Sdk:
    import openai

    place = base_url or teacher.base_url
    forget_environment("OPENAI_CUSTOM_HEADERS", *(("OPENAI_ORG_ID", "OPENAI_PROJECT_ID") if place else ()))
    key = lane_key(teacher)
    client = openai.OpenAI(api_key=key, base_url=place or PROVIDERS["openai"].url, max_retries=0)
    return taken_from(client, path, key)


def _joined(content: Any) -> Any:
    """Content as one text, where a server gives its parts (reasoning and text) one by one."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


class Chat:
    """`POST /chat/completions`."""

    name = "chat"
    rate_headers: RateHeaders = RATE_HEADERS
    charging = Charging.KEEP  # rate limits page, read 2026-11-23

    def __init__(self, teacher: Teacher) -> None:
        self._model = teacher.model
        # OpenAI's newer models refuse max_tokens; compatible servers know nothing else.
        own = teacher.provider == "openai" and teacher.base_url is None
        self._max_tokens = "max_completion_tokens" if own else "max_tokens"
        self._takes_temperature = takes_temperature(teacher)

    @staticmethod
    def sdk(teacher: Teacher, base_url: str | None) -> Sdk:
        return openai_sdk(teacher, base_url, "/chat/completions")

    def request(self, call: Call) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": wire_messages(call.messages),
            self._max_tokens: call.sampling.max_tokens,
        }
        if call.sampling.seed is not None:
            body["seed"] = call.sampling.seed + call.sample
        if self._takes_temperature and call.sampling.temperature is not None:
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
            return foreign("JSON")
        try:
            choice = found["choices"][0]
            message = choice["message"]
            text, refusal = _joined(message.get("content")), message.get("refusal")
            finish = str(choice.get("finish_reason") or "")
        except (KeyError, IndexError, TypeError, AttributeError):
            return foreign("a chat completion")
        if refusal or finish == "content_filter":
            return Answer(None, finish, f"refused: {str(refusal or finish)[:200]}")
        if not isinstance(text, str):
            return Answer(None, finish, "the message has no text")
        return Answer(storable(text), finish)
