"""Structured output: what each dialect is sent for a schema, and what comes back."""

import json
from typing import Any

from schemas.call import Call, Message, Sampling
from schemas.lane import Teacher
from services.teachers.adapter import DIALECTS, decode
from services.teachers.dialect import is_strict

SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False,
}  # fmt: skip


def test_a_schema_is_sent_as_structured_output_or_as_a_tool() -> None:
    call = Call("r", (Message("user", "hi"),), Sampling(), schema=json.dumps(SCHEMA))
    fields = {"provider": "openai", "model": "gpt-4.1"}
    chat, responses = (DIALECTS[name](Teacher(**fields)).request(call) for name in ("chat", "responses"))
    assert chat["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": SCHEMA}
    assert responses["text"]["format"]["schema"] == SCHEMA
    own = DIALECTS["messages"](Teacher(provider="anthropic", model="claude-haiku-4-5")).request(call)
    assert own["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "tools" not in own
    compatible = Teacher(provider="anthropic", model="m", free=True, base_url="http://127.0.0.1:9")
    assert DIALECTS["messages"](compatible).request(call)["tools"][0]["input_schema"] == SCHEMA
    used = {"stop_reason": "tool_use", "content": [{"type": "tool_use", "name": "answer", "input": {"n": 4}}]}
    assert decode("messages", json.dumps(used).encode()).text == '{"n": 4}'


def test_anthropics_own_format_gets_a_schema_that_it_takes_and_a_tool_any_other() -> None:
    """Its API answers 400 to an object that is open, and to minLength, minimum and their like."""
    lane = DIALECTS["messages"](Teacher(provider="anthropic", model="claude-haiku-4-5"))

    def sent(schema: dict[str, Any]) -> dict[str, Any]:
        return lane.request(Call("r", (Message("user", "hi"),), Sampling(), schema=json.dumps(schema)))

    name = {"type": "string", "minLength": 1}
    taken = sent({"type": "object", "properties": {"name": name}, "required": ["name"]})["output_config"]["format"]
    assert taken["schema"]["additionalProperties"] is False
    assert taken["schema"]["properties"]["name"] == {"type": "string", "description": "{minLength: 1}"}
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}
    flat = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "string"}}}
    assert "output_config" in sent(flat)
    for odd in (
        {"type": "object", "properties": {"x": {"type": ["string", "null"]}}},
        {"type": "object", "properties": {"scores": {"type": "object", "additionalProperties": {"type": "number"}}}},
        {"type": "object", "properties": {"any": {"type": "object"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/definitions/n"}}, "definitions": {"n": {"type": "string"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}},
        {"type": "object", "properties": {"x": {"type": "string"}}, "anyOf": [flat, flat]},
        {"type": "object", "properties": {"x": {"allOf": [{"type": "string"}]}}},
        {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x", "y"]},
    ):
        assert sent(odd)["tools"][0]["input_schema"] == odd and "output_config" not in sent(odd)


def test_strict_mode_is_asked_for_only_where_the_schema_allows_it() -> None:
    assert is_strict(SCHEMA)
    assert not is_strict({"type": "array", "items": SCHEMA})  # the root must be an object
    assert not is_strict({"type": "object"}) and not is_strict({**SCHEMA, "allOf": [{}]})
    assert is_strict({**SCHEMA, "$defs": {"s": SCHEMA}})
    assert not is_strict({**SCHEMA, "$defs": {"s": {"type": "object"}}})
    assert not is_strict({**SCHEMA, "required": []})
    assert not is_strict({"type": "object", "properties": {"x": {"type": "object", "properties": {}}}})
