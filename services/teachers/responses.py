"""OpenAI Responses."""

import json
from typing import Any

from schemas.call import Answer, Call, wire_messages
from schemas.lane import Teacher
from schemas.money import Usage
from schemas.text import storable
from services.admission.charging import Charging
from services.teachers.chat import RATE_HEADERS, openai_sdk, takes_temperature
from services.teachers.dialect import NAME, counted, foreign, is_strict, parsed
from services.teachers.sdk import Sdk


class Responses:
    """`POST /responses`. Nothing is stored at the provider: `store` is true there by default."""

    name = "responses"
    rate_headers = RATE_HEADERS
    charging = Charging.KEEP

    def __init__(self, teacher: Teacher) -> None:
        self._model, self._takes_temperature = teacher.model, takes_temperature(teacher)

    @staticmethod
    def sdk(teacher: Teacher, base_url: str | None) -> Sdk:
        return openai_sdk(teacher, base_url, "/responses")

    def request(self, call: Call) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "input": wire_messages(call.messages),
            "max_output_tokens": call.sampling.max_tokens,
            "store": False,
        }
        if self._takes_temperature and call.sampling.temperature is not None:
            body["temperature"] = call.sampling.temperature
        if call.schema is not None:
            schema = json.loads(call.schema)
            form = {"type": "json_schema", "name": NAME, "strict": is_strict(schema), "schema": schema}
            body["text"] = {"format": form}
        return body

    @staticmethod
    def usage(body: bytes) -> Usage | None:
        return counted(parsed(body), "input_tokens", "output_tokens")

    @staticmethod
    def decode(body: bytes) -> Answer:
        found = parsed(body)
        if found is None:
            return foreign("JSON")
        try:
            parts = [part for item in found["output"] if item["type"] == "message" for part in item["content"]]
            refusals = [str(part["refusal"]) for part in parts if part["type"] == "refusal"]
            texts = [part["text"] for part in parts if part["type"] == "output_text"]
            reason = str((found.get("incomplete_details") or {}).get("reason") or "")
        except (KeyError, TypeError, AttributeError):
            return foreign("a response")
        finish = "length" if reason == "max_output_tokens" else reason or "stop"
        if refusals or reason == "content_filter":
            return Answer(None, finish, f"refused: {(refusals or [reason])[0][:200]}")
        if not texts or not all(isinstance(text, str) for text in texts):
            return Answer(None, finish, "the response has no text")
        return Answer(storable("".join(texts)), finish)
