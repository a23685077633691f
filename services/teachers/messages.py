"""Anthropic Messages, spoken by Anthropic and by compatible servers such as llama.cpp."""

import functools
import json
from typing import Any

from schemas.call import Answer, Call
from schemas.lane import PROVIDERS, Teacher
from schemas.money import Usage
from schemas.text import storable
from services.admission.charging import Charging
from services.teachers.credentials import lane_key
from services.teachers.dialect import NAME, counted, foreign, parsed
from services.teachers.sdk import Sdk, forget_environment, taken_from
from services.teachers.verdict import RateHeaders

LOST = {"definitions", "patternProperties", "unevaluatedProperties", "if", "then", "not", "dependentSchemas",
        "dependentRequired", "propertyNames", "prefixItems", "allOf"}  # fmt: skip
VALUES = ("properties", "$defs", "enum", "const", "default", "examples")  # no schemas themselves
CUT = ("max_tokens", "model_context_window_exceeded")


@functools.lru_cache(maxsize=64)
def within_format(schema: str) -> str | None:
    """A schema as Anthropic's format takes it, by the package's own rules: objects closed, and keywords that it answers
    400 to (minLength, pattern, multipleOf ...) said in a description. What comes back is held against the schema as it
    was. None where that would be another schema: one with objects that are open or maps, with recursion, or with
    definitions that the rules do not know."""
    from anthropic import transform_schema

    whole = {key: part for key, part in json.loads(schema).items() if key not in ("$schema", "$id")}
    try:
        return json.dumps(transform_schema(whole)) if _can_be_closed(whole, whole, ()) else None
    except (ValueError, TypeError, AssertionError):
        return None


def _can_be_closed(node: Any, whole: dict[str, Any], within: tuple[str, ...]) -> bool:
    """Whether no answer is lost where every object takes the properties that it names and no other. `within`: the
    references that led here."""
    if isinstance(node, list):
        return all(_can_be_closed(part, whole, within) for part in node)
    if not isinstance(node, dict):
        return True
    reference = node.get("$ref")
    if reference is not None:
        name = str(reference).removeprefix("#/$defs/")
        known = name in whole.get("$defs", {}) and name not in within
        return known and _can_be_closed(whole["$defs"][name], whole, (*within, name))
    if node.keys() & LOST or ("properties" in node and node.keys() & {"anyOf", "oneOf"}):
        return False
    is_object = node.get("type") == "object" or "properties" in node
    named = node.get("properties", {})
    if is_object and (not named or node.get("additionalProperties", False) is not False):
        return False
    if not named.keys() >= set(node.get("required", ())):
        return False
    others = {key: part for key, part in node.items() if key not in VALUES}
    return all(_can_be_closed(part, whole, within) for part in (*named.values(), *others.values()))


class Messages:
    """`POST /v1/messages`."""

    name = "messages"
    charging = Charging.LIVE  # rate limits page, read 2026-11-23
    rate_headers: RateHeaders = {
        ours: [(f"anthropic-ratelimit-{wire}-limit", f"anthropic-ratelimit-{wire}-remaining")]
        for ours, wire in (
            ("requests", "requests"), ("tokens", "tokens"), ("input", "input-tokens"), ("output", "output-tokens"),
        )
    }  # fmt: skip

    def __init__(self, teacher: Teacher) -> None:
        self._model = teacher.model
        self._compatible = teacher.base_url is not None

    @staticmethod
    def sdk(teacher: Teacher, base_url: str | None) -> Sdk:
        import anthropic

        key, place = lane_key(teacher), base_url or teacher.base_url
        forget_environment("ANTHROPIC_CUSTOM_HEADERS")
        client = anthropic.Anthropic(api_key=key, base_url=place or PROVIDERS["anthropic"].url, max_retries=0)
        # The SDK sends a bearer token since 1.0; compatible gateways read x-api-key.
        return taken_from(client, "/v1/messages", key, **({"x-api-key": key} if place else {}))

    def request(self, call: Call) -> dict[str, Any]:
        turns = [{"role": m.role, "content": m.content} for m in call.messages if m.role != "system"]
        body: dict[str, Any] = {"model": self._model, "max_tokens": call.sampling.max_tokens, "messages": turns}
        system = "\n\n".join(m.content for m in call.messages if m.role == "system")
        if system:
            body["system"] = system
        # Anthropic's current models answer 400 to a temperature (migration guide of the SDK's 1.0, read 2026-11-23).
        if self._compatible and call.sampling.temperature is not None:
            body["temperature"] = call.sampling.temperature
        if call.schema is not None:
            self._structure(body, call.schema)
        return body

    def _structure(self, body: dict[str, Any], schema: str) -> None:
        """Anthropic has `output_config.format`; compatible servers know tools, and so does Anthropic for a schema that
        its format does not take: the answer is then a tool's input."""
        own = None if self._compatible else within_format(schema)
        if own is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": json.loads(own)}}
        else:
            body["tools"] = [{"name": NAME, "description": "Give the answer.", "input_schema": json.loads(schema)}]
            body["tool_choice"] = {"type": "tool", "name": NAME}

    @staticmethod
    def usage(body: bytes) -> Usage | None:
        cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
        return counted(parsed(body), "input_tokens", "output_tokens", *cached)

    @staticmethod
    def decode(body: bytes) -> Answer:
        found = parsed(body)
        if found is None:
            return foreign("JSON")
        try:
            reason = str(found["stop_reason"] or "")
            texts = [part["text"] for part in found["content"] if part["type"] == "text"]
            inputs = [part["input"] for part in found["content"] if part["type"] == "tool_use"]
            details = found.get("stop_details") or {}
            category = str(details.get("category") or reason)
        except (KeyError, TypeError, AttributeError):
            return foreign("a message")
        finish = "length" if reason in CUT else reason
        if reason == "refusal":
            return Answer(None, finish, f"refused: {category[:200]}")
        if inputs:
            return Answer(storable(json.dumps(inputs[0], ensure_ascii=False)), finish)
        if not texts or not all(isinstance(text, str) for text in texts):
            return Answer(None, finish, "the message has no text")
        return Answer(storable("".join(texts)), finish)
