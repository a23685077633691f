"""Turn a pydantic error into one line: the dotted key, the bad value, the nearest known key."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.errors import SpecError

SECRET = re.compile(r"key|secret|passw|token$|^auth", re.IGNORECASE)  # names of keys whose values are not repeated
LOOKS_SECRET = re.compile(r"\bsk-|\bBearer |://[^/]*@|[?&]\w*=", re.IGNORECASE)
LATER = {"icl": "pipeline icl", "deadline": "the deadline planner"}  # keys of the contract that are not built yet
UNBUILT = {"sampling.n": "1", "instruct.mode": "example_guided"}


def known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that are allowed where `path` points to, found by walking the model's fields."""
    here: Any = model.model_json_schema(by_alias=True)
    defs = here.get("$defs", {})

    def resolve(node: Any, key: str | int) -> list[Any]:
        options = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        options = [defs.get(o["$ref"].rsplit("/", 1)[-1], {}) if "$ref" in o else o for o in options]
        if isinstance(key, int):
            return [o["items"] for o in options if "items" in o]
        return [o["properties"][key] for o in options if key in o.get("properties", {})]

    nodes = [here]
    for key in path:
        nodes = [found for node in nodes for found in resolve(node, key)]
    keys: list[str] = []
    for node in nodes:
        for option in [node, *node.get("anyOf", [])]:
            target = defs.get(option["$ref"].rsplit("/", 1)[-1], {}) if "$ref" in option else option
            keys += list(target.get("properties", {})) + target.get("propertyNames", {}).get("enum", [])
    return keys


def _dotted(path: tuple[str | int, ...]) -> str:
    out = ""
    for key in path:
        out += f"[{key}]" if isinstance(key, int) else f".{key}" if out else str(key)
    return out


def _shown(key: Any, value: Any) -> str:
    """A value for a message, '' where it may be a secret or is a whole section."""
    text = repr(value)
    if (
        (isinstance(value, dict | list | BaseModel) and value not in ({}, []))
        or SECRET.search(str(key))
        or LOOKS_SECRET.search(text)
    ):
        return ""
    return text if len(text) <= 80 else text[:77] + "..."


def spec_error(model: type[BaseModel], error: ValidationError) -> SpecError:
    """The first problem of `error` as one line, with a hint that names the nearest known key."""
    problems = error.errors()
    # An unknown key explains a missing one beside it ({form: x} where `from` is required), so it comes first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    part = {"TrainingSpec": " --training", "EvaluationSpec": " --evaluation"}.get(model.__name__, "")
    hint = f"limbeck schema{part} prints every key with its meaning"
    # '[key]' is pydantic's mark for "the key of this dict"; it is no part of what the user wrote.
    path = tuple(p for p in first["loc"] if p not in ("[key]",))
    dotted = _dotted(path) or "the spec"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] in ("extra_forbidden", "literal_error") and (
        first["type"] == "extra_forbidden" or first["loc"][-1] == "[key]"
    ):
        known = known_keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
        nearest = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        if path[-1] in LATER:
            return SpecError(f"{dotted}: {LATER[str(path[-1])]} is not built yet", "leave it out")
        shown = _shown(path[-1], first["input"])
        return SpecError(f"unknown key {dotted}{' = ' if shown else ''}{shown}{more}", nearest)
    if first["type"] == "missing":
        return SpecError(f"{dotted} is required{more}", hint)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        keys = known_keys(model, path)
        message = "must be a mapping" + (f" with keys such as {', '.join(keys[:4])}" if keys else " of keys to values")
    if first["type"] == "none_required" or (first["type"] == "literal_error" and dotted in UNBUILT):
        message = f"not built yet; leave it {UNBUILT.get(dotted, 'null')}"
    shown = _shown(path[-1] if path else "", first["input"])
    where = f"{dotted}: {shown}" if shown else dotted
    return SpecError(f"{where}: {message}{more}", hint)
