"""What tells one wire dialect from another. A new one is a file with a `Dialect`, named in `adapter`, and its recorded
shapes; where it is a new provider's, too, `schemas.lane` has its name, address and usual key."""

import json
from typing import Any, Protocol

from schemas.call import Answer, Call
from schemas.lane import Teacher
from schemas.money import Usage
from services.admission.charging import Charging
from services.teachers.sdk import Sdk
from services.teachers.verdict import RateHeaders

REFUSED_IF_STRICT = {
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
    "propertyNames", "unevaluatedProperties", "contains",
}  # fmt: skip
MOST_TOKENS = 10**8  # of one call; beyond any model's context
NAME = "answer"  # of the schema or the tool that structured output goes by


class Dialect(Protocol):
    """A provider's request and answer, as plain functions of bytes.

    `decode` and `usage` never raise: a paid answer is kept whatever it holds.
    """

    name: str  # by which the journal remembers how to read a lane's bodies
    rate_headers: RateHeaders
    charging: Charging  # how the provider itself counts tokens against a limit; a compatible server may differ

    def __init__(self, teacher: Teacher) -> None: ...

    @staticmethod
    def sdk(teacher: Teacher, base_url: str | None) -> Sdk:
        """From the provider's own package; `base_url` where it is not the lane's."""
        ...

    def request(self, call: Call) -> dict[str, Any]: ...

    @staticmethod
    def usage(body: bytes) -> Usage | None: ...

    @staticmethod
    def decode(body: bytes) -> Answer: ...


def foreign(what: str) -> Answer:
    """What is said of a body that is not `what` it should be."""
    return Answer(None, problem=f"the body is not {what}", foreign=True)


def parsed(body: bytes) -> Any:
    """The JSON value of a body, None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def whole_number(value: Any) -> int | None:
    """A count as some servers write it (10.0) and all others do; None for anything else, and for nonsense."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def counted(found: Any, asked: str, given: str, *more_asked: str) -> Usage | None:
    """Tokens under `usage` of a body, or None where it does not say: the reservation then stands."""
    usage = found.get("usage") if isinstance(found, dict) else None
    if not isinstance(usage, dict):
        return None
    into, out = whole_number(usage.get(asked)), whole_number(usage.get(given))
    if into is None or out is None:
        return None
    into += sum(whole_number(usage.get(name)) or 0 for name in more_asked)
    # Some count thoughts in the total alone (xAI; gateways before Gemini), and bill them as output.
    return Usage(into, max(out, (whole_number(usage.get("total_tokens")) or 0) - into))


def is_strict(schema: dict[str, Any]) -> bool:
    """Whether a schema lies in the subset that OpenAI's strict mode takes: an object, closed as all within it are, each
    property required, none of the keywords that it refuses. Where it does not, it goes out as a request only."""
    return schema.get("type") == "object" and _is_closed(schema)


def _is_closed(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(_is_closed(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    if REFUSED_IF_STRICT & schema.keys():
        return False
    if "properties" in schema or schema.get("type") == "object":
        inner = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(inner):
            return False
        if not all(_is_closed(part) for part in inner.values()):
            return False
    named = [part for key in ("$defs", "definitions") for part in schema.get(key, {}).values()]
    data = ("properties", "enum", "const", "default", "examples", "$defs", "definitions")
    return all(_is_closed(part) for part in (*named, *(part for key, part in schema.items() if key not in data)))
